"""A method as it stands in a compare file, whatever it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from transformers import PreTrainedTokenizerBase

from fusionroute.config import Settings
from fusionroute.engine.method import Method
from fusionroute.evaluation.compare.lineup.shared import Shared
from fusionroute.models.loading import ModelReference
from fusionroute.models.prompt import PromptFormat

SEED = "{seed}"


@dataclass(frozen=True)
class Contestant:
    """A method ready to write, and how prompts are put to it."""

    method: Method
    tokenizer: PreTrainedTokenizerBase
    prompt: PromptFormat


class Entry(Settings):
    """A method as it stands in a compare file."""

    method: str
    is_joint: ClassVar[bool] = False  # whether several models write one answer

    @property
    def is_seeded(self) -> bool:
        """Whether its answers may differ between seeds even if they are not sampled."""
        return SEED in str(self.model_dump())

    def at(self, seed: int) -> Self:
        """The entry for one seed: ``{seed}`` filled in."""
        return type(self).model_validate(filled(self.model_dump(exclude_unset=True), seed))

    def conditions(self) -> dict[str, Any]:
        """What its answers depend on beside the models, as JSON; another for any change of it."""
        return self.model_dump(mode="json")

    def problem(self, experts: Mapping[str, ModelReference], base: ModelReference | None) -> str | None:
        """What is wrong with it beside these experts; None if nothing is."""
        return None

    def models(self, shared: Shared) -> dict[str, ModelReference]:
        """Every model it needs, by its part, so that a result knows which ones it was measured on."""
        return {f"expert {name}": reference for name, reference in shared.experts.items()}

    def scored_by(self, shared: Shared) -> dict[str, Any] | None:
        """Whose judgement it follows, if anybody's."""
        return None

    def check(self, shared: Shared) -> None:
        """Whatever can be told without loading weights, so that it is told before hours are spent.

        Raises:
            CheckpointError, VocabularyError, SettingsError: as the parts do.
        """

    def build(self, shared: Shared, seed: int) -> Contestant:
        """Load what it needs. Raises as `check` does."""
        raise NotImplementedError


def filled(value: Any, seed: int) -> Any:
    """``{seed}`` filled in, wherever it stands in settings."""
    if isinstance(value, str):
        return value.replace(SEED, str(seed))
    if isinstance(value, Mapping):
        return {key: filled(each, seed) for key, each in value.items()}
    return value
