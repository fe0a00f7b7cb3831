"""A model of an ensemble, with its own tokenizer and its own prompt format."""

from dataclasses import dataclass
from typing import Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.models.opening import OpenedFormat
from fusionroute.models.prompt import PromptFormat
from fusionroute.models.team import context_length
from fusionroute.models.vocabulary import Pieces, eos_ids


@dataclass(frozen=True)
class Member:
    """A member of an ensemble: what it is called, what it computes, what its tokens write, how it is asked."""

    name: str
    model: PreTrainedModel
    pieces: Pieces
    prompt: PromptFormat

    @classmethod
    def of(
        cls, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str | None = None
    ) -> Self:
        """A member from its parts.

        Raises:
            VocabularyError: its tokenizer cannot be aligned with others, does not fit the model, or has no end.
            SettingsError: an unknown prompt format, or one that the tokenizer does not have.
        """
        size = model.config.get_text_config().vocab_size
        pieces = Pieces(tokenizer, name=name, vocabulary_size=size, eos_ids=eos_ids(model))
        return cls(name, model.eval(), pieces, OpenedFormat(pieces, prompt))

    @property
    def context_length(self) -> int:
        """Positions that the model can hold."""
        return context_length(self.model)
