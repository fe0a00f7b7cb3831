"""A request in the hands of the worker: its sequences, and what each round brings to them."""

from collections.abc import Callable
from dataclasses import dataclass

from fusionroute.answering import TextByToken
from fusionroute.engine.sequence import PromptLogprob, Sequence, TraceRecord
from fusionroute.server.offer import Offered

TIMEOUT, SHUTDOWN = "timeout", "shutdown"


@dataclass(slots=True)  # not frozen: that takes five times as long to make, and there is one for every token
class Update:
    """What one round brought to one sequence of a request.

    Attributes:
        index: which of the request's sequences.
        written: the new tokens, each with the text that it makes ready to be shown.
        finish_reason: of a sequence's last update, as in `Completion`; "error" where ``error`` is set.
        error: `TIMEOUT`, `SHUTDOWN`, or what went wrong in words that a client may see.
        prompt_logprobs: see `Sequence`; on the first update of one that asked for them.
        rest: text behind that of ``written`` that became ready without a token, as it does where an answer is ended
            while the beginning of a stop string is held back. All texts joined are `Sequence.text`.
    """

    index: int
    written: list[tuple[TraceRecord, str]]
    finish_reason: str | None = None
    error: str | None = None
    prompt_logprobs: list[PromptLogprob] | None = None
    rest: str = ""


OnUpdate = Callable[[list[Update]], None]


class Strand:
    """One sequence of a request that has not ended."""

    def __init__(self, index: int, sequence: Sequence):
        self.index = index
        self.sequence = sequence
        self._texts = TextByToken(sequence)
        self.last_token_at: float | None = None
        self.is_lost = False  # the engine that was writing it has failed

    def news(self, error: str | None = None) -> Update | None:
        """What was written since the last call; None if nothing was and the answer goes on.

        Args:
            error: why it ends here, though it could have gone on.
        """
        sequence, written = self.sequence, self._texts.new()
        error = error or sequence.error
        if not (written or error or sequence.is_finished):
            return None
        is_first = self.last_token_at is None
        return Update(
            index=self.index,
            written=written,
            finish_reason="error" if error else sequence.finish_reason,
            error=error,
            prompt_logprobs=sequence.prompt_logprobs if is_first else None,
            rest=self._texts.rest() if sequence.is_finished else "",
        )


class Ticket:
    """A request in the worker's hands: what goes on is told to ``on_update``, in the worker's thread.

    Once it has ended or was cancelled it keeps nothing of its sequences, nor of who was told.

    Attributes:
        strands: of its sequences that have not ended, by number.
        on_update: None once all have ended.
    """

    def __init__(
        self,
        offered: Offered,
        sequences: list[Sequence],
        on_update: OnUpdate,
        *,
        arrived_at: float,
        cancel: Callable[["Ticket"], None],
    ):
        self.arrived_at = arrived_at
        self.offered = offered
        self.strands = {index: Strand(index, sequence) for index, sequence in enumerate(sequences)}
        self.on_update: OnUpdate | None = on_update
        self.is_cancelled = False
        self._cancel = cancel

    def cancel(self) -> None:
        """End it; its places are free before the next step. From any thread, any number of times, also too late.

        An update that is on its way may still arrive, but no other.
        """
        self._cancel(self)
