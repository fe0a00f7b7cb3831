"""Prompts whose last message is the beginning of the answer, as some benchmarks put them."""

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import jinja2

from fusionroute.errors import PromptError
from fusionroute.models.prompt import Message, Prompt, PromptFormat
from fusionroute.models.vocabulary import Pieces

ASSISTANT = "assistant"


class OpenedFormat(PromptFormat):
    """A prompt format that also takes messages of which the last is the assistant's: the answer goes on from there.

    Its text is read as the answer itself will be: byte for byte, in the member's own tokens.
    """

    def __init__(self, pieces: Pieces, name: str | None = None):
        super().__init__(pieces.tokenizer, name)
        self.pieces = pieces

    def encode(self, prompt: Prompt) -> list[int]:
        """As `PromptFormat.encode`; `PromptError` too for messages that the chat template refuses."""
        if not is_opened(prompt):
            return self._encode(prompt)
        return self._encode(prompt[:-1]) + self.pieces.encode((self.lead + prompt[-1]["content"]).encode())

    def _encode(self, prompt: Prompt) -> list[int]:
        try:
            return super().encode(prompt)
        except jinja2.TemplateError as error:
            raise PromptError(
                f"the chat template of {self.pieces.name!r} refuses these messages ({error}); leave out what it does "
                "not know, such as a system message"
            ) from error


def is_opened(prompt: Prompt | None) -> TypeGuard[Sequence[Message]]:
    """Whether these are messages that end with the beginning of an answer."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        return False
    last = prompt[-1]
    return isinstance(last, Mapping) and last.get("role") == ASSISTANT and bool(last.get("content"))
