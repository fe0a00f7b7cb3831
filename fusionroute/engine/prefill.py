"""A long prompt comes in parts while others write: who may write this round, and what the others read meanwhile."""

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence as ListLike

import torch

from fusionroute.engine.runner import AnyRunner, Readable, Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.errors import SettingsError

FEW = 16  # tokens that a round may always read of a sequence which is being written: what it missed of late
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


def read_in_parts(asked: Mapping[Sequence, Asked], chunk: int | None, *, is_alone: bool) -> list[Sequence]:
    """Those who may write this round; whoever has too much to read for that reads a part of it here.

    In one round a model reads at most ``chunk`` tokens of prompts, first come, first served; what sequences that are
    being written have missed of late comes on top. Where nobody could write there is nobody to delay: then all may,
    and read as much as they have to.

    Args:
        asked: the sequences in order of arrival, each with whom it needs for its next token. A model that is not
            named here is asked without a limit.
        chunk: None = no limit.
        is_alone: whether no sequences of other engines are being written.
    """
    if chunk is None:
        return list(asked)
    missing = {each: [_missing(runner, handle) for runner, handle in pairs] for each, pairs in asked.items()}
    writing = {each for each, counts in missing.items() if is_writing(each) and max(counts, default=0) <= FEW}
    if len(writing) == len(asked) or (is_alone and not writing):
        return list(asked)
    left: dict[AnyRunner, int] = defaultdict(lambda: chunk)
    parts: dict[Runner, list[tuple[Readable, int]]] = defaultdict(list)
    may_write = []
    for sequence, pairs in asked.items():
        if sequence in writing:
            may_write.append(sequence)
            continue
        counts = [_to_read(runner, handle, left[runner]) for runner, handle in pairs]
        is_ready = all(count <= left[runner] for (runner, _), count in zip(pairs, counts, strict=True))
        if is_ready:
            may_write.append(sequence)
        for (runner, handle), count in zip(pairs, counts, strict=True):
            count = min(count, left[runner])
            left[runner] -= count
            if count and not is_ready and isinstance(runner, Runner):
                parts[runner].append((handle, count))
    for runner, each in parts.items():
        runner.read_ahead([handle for handle, _ in each], [count for _, count in each])
    return may_write


def too_far_behind(runner: AnyRunner, handles: ListLike[Readable], chunk: int) -> list[int]:
    """Which of these, by number, a model that they did not expect cannot read this round; see `read_in_parts`."""
    late, left = [], chunk
    for at, handle in enumerate(handles):
        count = _missing(runner, handle)
        if count > FEW:
            count = _to_read(runner, handle, left)
        if FEW < count <= left:
            left -= count
        elif count > FEW:
            late.append(at)
    return late


def is_writing(sequence: Sequence) -> bool:
    """Whether it has begun to write, so that somebody may be watching it."""
    return sequence.position > 0


def _missing(runner: AnyRunner, handle: Readable) -> int:
    return runner.missing(handle) if isinstance(runner, Runner) else 0


def _to_read(runner: AnyRunner, handle: Readable, left: int) -> int:
    """What it misses beyond what others have read of it; that is looked up when its turn comes, not before."""
    if left > 0 and isinstance(runner, Runner):
        runner.join(handle)
    return _missing(runner, handle)
