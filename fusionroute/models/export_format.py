"""A team as one checkpoint for vLLM: where its parts lie, what ``config.json`` says of them, whether it is whole."""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

from pydantic import Field

from fusionroute.config import Settings
from fusionroute.errors import CheckpointError
from fusionroute.models.vocabulary import ROUTER

MODEL_TYPE = "fusionroute"
ARCHITECTURE = "FusionRouteForCausalLM"
ROUTE_HEAD = "route_head"
HEAD_FILE = "model.safetensors"  # of the route head, alone at the top; every other model keeps its own file names


class ExportedExpert(Settings):
    """One expert: its name in the team, the folder of its weights, and its own ``config.json``."""

    name: str
    folder: str
    config: dict[str, Any]


class ExportedTeam(Settings):
    """The part of ``config.json`` that is ours, under the key ``team``.

    Attributes:
        router: the ``config.json`` of the router's LM.
        experts: in the order of the route head's outputs; a mapping would not keep it.
        route_head_bias: does the route head have one?
        weight_files: every file with weights and its size in bytes, by which a half-copied folder is told.
    """

    version: Literal[1] = 1
    router: dict[str, Any]
    experts: tuple[ExportedExpert, ...] = Field(min_length=1)
    route_head_bias: bool = False
    weight_files: dict[str, int]

    @property
    def folders(self) -> list[str]:
        """Where the weights of each model lie, the router's first."""
        return [ROUTER, *(expert.folder for expert in self.experts)]

    @property
    def configs(self) -> list[dict[str, Any]]:
        """The ``config.json`` of each model, the router's first."""
        return [self.router, *(expert.config for expert in self.experts)]


def words(num_experts: int) -> list[str]:
    """What the models are called inside vLLM: ``router``, ``expert_a``, …, ``expert_z``, ``expert_aa``, ….

    Not the experts' own names: vLLM reads a layer's number off the parts of its name, and one of "4" or "v2.5" would
    give it a second number.
    """
    return [ROUTER, *(f"expert_{_letters(at)}" for at in range(num_experts))]


def _letters(number: int) -> str:
    more, last = divmod(number, len(ascii_lowercase))
    return (_letters(more - 1) if more else "") + ascii_lowercase[last]


def check_whole(folder: str | Path, weight_files: dict[str, int]) -> None:
    """Insist that every weight file is there in its full size. Raises `CheckpointError` naming one that is not."""
    for name, size in weight_files.items():
        path = Path(folder) / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} of {size} bytes"
            raise CheckpointError(f"{folder} is half-written: {name} {state}; copy it again, or export the team again")


def whole_sizes(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """What `check_whole` compares with."""
    return {name: (folder / name).stat().st_size for name in names}
