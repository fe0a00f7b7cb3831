"""Prompt formats that the worker and everybody else use at once, each with a tokenizer of their own.

No tokenizer is made for two threads. A fast one changes its own settings inside a call (truncation, padding, reading of
special tokens): another thread then reads by the wrong ones or, with older libraries, gets "Already borrowed". A slow
one is a Python program with state, and `Pieces` learn while they encode. The worker decodes every token that is written
and, in an ensemble, encodes the prompt anew for every member, all while the next prompts are being read. So the worker
keeps the originals, and all others take turns at a copy. A lock over one tokenizer would do too, but then a prompt of
megabytes that somebody sends would hold up every answer that is being written.
"""

import copy
import threading
from collections.abc import Sequence

from fusionroute.models.prompt import Message, Prompt, PromptFormat


class WorkerThread:
    """Which thread is the worker's."""

    def __init__(self) -> None:
        self._worker: int | None = None

    def claim(self) -> None:
        """The calling thread is."""
        self._worker = threading.get_ident()

    @property
    def is_worker(self) -> bool:
        """Whether the calling thread is."""
        return threading.get_ident() == self._worker


class AnyThreadFormat(PromptFormat):
    """A prompt format for any thread.

    Attributes:
        tokenizer: the copy, which the worker never uses. Whoever decodes with it while others encode is safe: its
            settings are settled here, so that no later call changes them.
    """

    def __init__(self, original: PromptFormat, thread: WorkerThread):
        self._original, self._copy = original, copy.deepcopy(original)
        self._thread, self._turn = thread, threading.Lock()
        super().__init__(self._copy.tokenizer, original.name)
        self.tokenizer("settled")  # drops the truncation and padding that were saved with it

    def encode(self, prompt: Prompt) -> list[int]:
        """As the original does."""
        if self._thread.is_worker:
            return self._original.encode(prompt)
        with self._turn:
            return self._copy.encode(prompt)

    def refuses(self, messages: Sequence[Message]) -> bool:
        """As the original does."""
        if self._thread.is_worker:
            return self._original.refuses(messages)
        with self._turn:
            return self._copy.refuses(messages)

    def render(self, messages: Sequence[Message]) -> str:
        """The text that `encode` reads, in which a control token's spelling may also be a message's own."""
        with self._turn:
            return self._copy._render(messages)

    @property
    def lead(self) -> str:
        """As the original's."""
        if self._thread.is_worker:
            return self._original.lead
        with self._turn:
            return self._copy.lead
