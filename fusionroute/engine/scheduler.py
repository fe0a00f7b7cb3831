"""Who writes now and who waits. First come, first served; nobody overtakes."""

from collections import deque

from fusionroute.engine.sequence import Sequence
from fusionroute.errors import RequestTooLargeError


class Scheduler:
    """Admits sequences so that rows times the longest promised length never exceeds ``token_limit``.

    The promise is the worst case (every model reads every sequence to its end), so what was admitted can always finish.
    Several engines may share one: their sequences then stand in one queue.
    """

    def __init__(self, max_batch: int, token_limit: int):
        self.max_batch = max_batch
        self.token_limit = token_limit
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises `RequestTooLargeError` if it could not run even alone."""
        if sequence.max_length > self.token_limit:
            raise RequestTooLargeError(
                f"a prompt of {sequence.prompt_length} tokens and its answer need {sequence.max_length} cached tokens "
                f"but the limit is {self.token_limit}; "
                "shorten it, ask for fewer new tokens, or raise cache_limit"
            )
        self.waiting.append(sequence)

    def admit(self) -> None:
        """Move from waiting to running whoever fits, in order of arrival."""
        while self.waiting and self._fits(self.waiting[0]):
            self.running.append(self.waiting.popleft())

    def remove(self, sequence: Sequence) -> None:
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _fits(self, sequence: Sequence) -> bool:
        rows = len(self.running) + 1
        longest = max(other.max_length for other in [*self.running, sequence])
        return rows <= self.max_batch and rows * longest <= self.token_limit
