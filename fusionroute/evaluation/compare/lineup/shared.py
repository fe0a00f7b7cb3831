"""What all methods of a comparison have in common: experts, prompts, who judges, where they run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from pydantic import model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.config import Settings
from fusionroute.errors import SettingsError
from fusionroute.models.ensemble import Voice, load_voice
from fusionroute.models.loading import Loaded, ModelReference, load_model, load_tokenizer
from fusionroute.models.prompt import CHAT_TEMPLATE
from fusionroute.models.vocabulary import check_tokenizers


class ScorerSettings(Settings):
    """Who says which of several texts is the best; neither named: the mean log-likelihood under all the experts."""

    model: str | None = None  # a language model with the experts' vocabulary: mean log-likelihood under it alone
    reward_model: str | None = None  # a sequence classifier with one output, of any vocabulary

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.model and self.reward_model:
            raise ValueError("name a model or a reward_model, not both")
        return self


@dataclass(frozen=True)
class Shared:
    """What all methods of a comparison have in common."""

    experts: Mapping[str, ModelReference]
    base: ModelReference | None
    scorer: ScorerSettings
    prompt: str | None
    device: str | None
    dtype: str | None
    _voices: dict[str, Voice] = field(default_factory=dict, compare=False, repr=False)

    def load(self, reference: ModelReference, loaded: Loaded | None = None) -> PreTrainedModel:
        return load_model(reference, device=self.device, dtype=self.dtype, loaded=loaded)

    def load_experts(self) -> dict[str, PreTrainedModel]:
        loaded: Loaded = {}
        return {name: self.load(reference, loaded) for name, reference in self.experts.items()}

    def voices(self, names: Iterable[str]) -> dict[str, Voice]:
        """What experts with tokenizers of their own write and read; see `load_voice`, as it raises."""
        names = list(names)
        for name in names:
            if name not in self._voices:
                self._voices[name] = load_voice(name, self.experts[name], self.prompt)
        return {name: self._voices[name] for name in names}

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The experts' one tokenizer.

        Raises:
            VocabularyError: they differ.
            SettingsError: their chat templates differ, and prompts are put by them.
        """
        tokenizers = {name: load_tokenizer(reference) for name, reference in self.experts.items()}
        (first, tokenizer), *others = tokenizers.items()
        check_tokenizers(tokenizer, tokenizers)
        for name, other in others if self.prompt == CHAT_TEMPLATE else ():
            if other.chat_template != tokenizer.chat_template:
                raise SettingsError(
                    f"experts {first!r} and {name!r} have different chat templates, so one of them would read a format "
                    "that it does not know; name a format for all, such as prompt: alpaca, or give both one template"
                )
        return tokenizer
