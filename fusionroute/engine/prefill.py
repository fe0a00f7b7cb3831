"""A long prompt comes in parts while others write: who may write this round, and what the others read meanwhile."""

from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field

import torch

from fusionroute.engine.runner import AnyRunner, Readable, Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.errors import SettingsError

FEW = 16  # tokens that a sequence which is being written may always miss, even where a chunk is smaller
CPU_CHUNK, ACCELERATOR_CHUNK = 24, 512  # read in about the time of one step for eight sequences, measured on a CPU

Asked = ListLike[tuple[AnyRunner, Readable]]  # models that will be asked for one sequence, each with what it reads


def chunk_for(device: torch.device, wanted: int | None = None) -> int:
    """Tokens of prompts that a model reads between two rounds. Raises `SettingsError` if ``wanted`` is no such number.

    Args:
        wanted: None = what suits the kind of device.
    """
    if wanted is None:
        return CPU_CHUNK if device.type == "cpu" else ACCELERATOR_CHUNK
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise SettingsError(f"prefill_chunk is a number of tokens, at least 1, or None for the default; got {wanted!r}")
    return wanted


@dataclass
class Budget:
    """How much of prompts may be read in one round in which others write, lest these wait.

    Of a sequence that is being written a model may always read what it has missed of late: ``usual`` tokens. All else,
    prompts above all, is at most ``chunk`` tokens a round, first come, first served. Models that read the same tokens
    of a sequence spend them once, as a step of theirs takes longer by as much; one that begins when another has ended,
    as an expert after the router, waits for the next round. Prompts of which the own log-probabilities are asked for
    have another ``chunk``.

    Attributes:
        is_alone: whether no sequences of other engines are being written.
        spent: tokens, so far.
        has_made_room: whether a cache has grown for a sequence that joined, which may take as long as reading a part.
        granted: which models may read which sequences whole, as that is spent already.
    """

    chunk: int
    is_alone: bool = True
    spent: int = 0
    has_made_room: bool = False
    granted: set[tuple[AnyRunner, Readable]] = field(default_factory=set)

    @property
    def usual(self) -> int:
        return max(FEW, self.chunk)

    @property
    def left(self) -> int:
        return self.chunk - self.spent


def read_in_parts(asked: Mapping[Sequence, Asked], budget: Budget | None) -> list[Sequence]:
    """Those who may write this round; whoever has too much to read for that reads a part of it here.

    Where nobody could write there is nobody to delay: then all may, and read as much as they have to.

    Args:
        asked: the sequences in order of arrival, each with whom it needs for its next token. A model that is not
            named here is asked without a limit.
        budget: None = no limit.
    """
    if budget is None:
        return list(asked)
    missing = {each: [_missing(runner, handle) for runner, handle in pairs] for each, pairs in asked.items()}
    writing = {each for each, counts in missing.items() if is_writing(each) and max(counts, default=0) <= budget.usual}
    if len(writing) == len(asked) or (budget.is_alone and not writing):
        return list(asked)
    may_write = []
    for sequence, pairs in asked.items():
        if sequence in writing or _is_within(budget, pairs):
            may_write.append(sequence)
        else:
            read_a_part(pairs, budget)
    return may_write


def _is_within(budget: Budget, pairs: Asked) -> bool:
    """Whether a sequence can be read in this round; if so, that is spent. The last token is what all read."""
    beyond = max((_to_read(runner, handle, budget) - 1 for runner, handle in pairs), default=0)
    if beyond > budget.left:
        return False
    budget.spent += max(0, beyond)
    budget.granted.update(pairs)
    return True


def too_far_behind(runner: AnyRunner, handles: ListLike[Readable], drafted: ListLike[int], budget: Budget) -> list[int]:
    """Which of these sequences that are being written, by number, a model that they did not expect cannot read now.

    Args:
        drafted: tokens at the end of each that are but a draft, for which nobody is to wait.
    """
    late = []
    for at, (handle, draft) in enumerate(zip(handles, drafted, strict=True)):
        if (runner, handle) in budget.granted:
            continue
        beyond = _missing(runner, handle) - draft - budget.usual
        if beyond > 0:
            beyond = _to_read(runner, handle, budget) - draft - budget.usual
        if beyond > budget.left:
            late.append(at)
        else:
            budget.spent += max(0, beyond)
    return late


def read_a_part(pairs: Asked, budget: Budget) -> None:
    """Let models read as much of a sequence as the budget allows, but not its last token.

    Room is not made for it in a round in which something was read, nor anything read in one in which room was made:
    both together would be felt. Nobody overtakes it then.
    """
    is_late = budget.spent > 0 and any(
        isinstance(runner, Runner) and handle not in runner.cache for runner, handle in pairs
    )
    if is_late or budget.has_made_room:
        budget.spent = budget.chunk
    left = budget.left
    for runner, handle in pairs:
        count = min(left, _missing(runner, handle) - 1)
        if isinstance(runner, Runner) and count > 0:
            runner.read_ahead([handle], [count])
            budget.spent = max(budget.spent, budget.chunk - left + count)


def is_writing(sequence: Sequence) -> bool:
    """Whether it has begun to write, so that somebody may be watching it."""
    return sequence.position > 0


def _missing(runner: AnyRunner, handle: Readable) -> int:
    return runner.missing(handle) if isinstance(runner, Runner) else 0


def _to_read(runner: AnyRunner, handle: Readable, budget: Budget) -> int:
    """What it misses beyond what others have read of it; that is looked up in a round in which nothing was read yet, as
    making room for it may take as long as reading a part.
    """
    if not budget.spent and isinstance(runner, Runner):
        before = runner.cache.capacity
        runner.join(handle)
        budget.has_made_room |= runner.cache.capacity != before
    return _missing(runner, handle)
