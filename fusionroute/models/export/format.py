"""A team as one checkpoint for vLLM: where its parts lie, what ``config.json`` says of them, whether it is whole."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from string import ascii_lowercase
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from fusionroute.config import Settings
from fusionroute.errors import CheckpointError
from fusionroute.models.team import EXPERTS_FOLDER, check_names
from fusionroute.models.vocabulary import ROUTER

MODEL_TYPE = "fusionroute"
ARCHITECTURE = "FusionRouteForCausalLM"
ROUTE_HEAD = "route_head"
HEAD_FILE = "model.safetensors"  # of the route head, alone at the top; every other model keeps its own file names
WEIGHTS = "*.safetensors"  # all that is ever loaded


class ExportedExpert(Settings):
    """One expert: its name in the team, the folder of its weights, and its own ``config.json``."""

    name: str
    folder: str
    config: dict[str, Any]

    @model_validator(mode="after")
    def _folder_is_its_own(self) -> Self:
        check_names([self.name])
        if self.folder != (own := folder_of(self.name)):
            raise ValueError(f"the weights of expert {self.name!r} lie in {own}, not in {self.folder!r}")
        return self


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
    weight_files: dict[str, NonNegativeInt]

    @model_validator(mode="after")
    def _files_are_of_these_models(self) -> Self:
        """It may come from a stranger: nothing outside the folder is read, and no model goes unchecked."""
        check_names([expert.name for expert in self.experts])
        for name in self.weight_files:
            if not is_below(name) or (name != HEAD_FILE and not any(_lies_in(name, each) for each in self.folders)):
                raise ValueError(
                    f"weight_files: {name!r} is neither {HEAD_FILE} nor below one of {', '.join(self.folders)}"
                )
        for place in [HEAD_FILE, *(folder for folder in self.folders if not self.weight_folders(folder))]:
            if place not in self.weight_files:
                raise ValueError(f"weight_files: there is nothing of {place}; export the team again")
        return self

    def weight_folders(self, folder: str) -> list[str]:
        """Where the weights of the model in ``folder`` lie: there, and for some models in folders below."""
        files = [PurePosixPath(name) for name in self.weight_files if _lies_in(name, folder)]
        return sorted({str(path.parent) for path in files if path.match(WEIGHTS)})

    @property
    def folders(self) -> list[str]:
        """Where the weights of each model lie, the router's first."""
        return [ROUTER, *(expert.folder for expert in self.experts)]

    @property
    def called(self) -> list[str]:
        """What a message calls each model, the router first."""
        return ["the router", *(f"expert {expert.name!r}" for expert in self.experts)]

    @property
    def configs(self) -> list[dict[str, Any]]:
        """The ``config.json`` of each model, the router's first."""
        return [self.router, *(expert.config for expert in self.experts)]


def folder_of(name: str) -> str:
    """Where the weights of a model lie, relative to the export."""
    return ROUTER if name == ROUTER else f"{EXPERTS_FOLDER}/{name}"


def is_below(name: str) -> bool:
    """Does a relative path, written with slashes, stay below its folder?"""
    return "\\" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


def _lies_in(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")


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
