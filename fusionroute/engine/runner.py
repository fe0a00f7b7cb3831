"""One model over many sequences: it reads what it missed when it is next asked."""

from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from fusionroute.engine.cache import ReadPlan, SlotCache
from fusionroute.engine.masks import ragged_masks
from fusionroute.engine.prefixes import Prefixes, shared_beginnings
from fusionroute.models.linear import use_fast_linears

# One more pass reads all weights once more; so many tokens are computed in that time. Measured on a CPU (200M
# parameters: 16 in float32, 25 in bfloat16), by data sheet elsewhere
CPU_BALANCE, ACCELERATOR_BALANCE = 16, 128
LEAST_PASS = 2**25  # bytes that are read in the time that even the smallest model takes for a pass
GROWTH = 64  # tokens of an answer that a prompt's room has in any case, lest its first token doubles all
PREFILL_CHUNK = 2048  # tokens of one row per pass; bounds the mask and the activations of a long prompt


class Readable(Protocol):
    """What a model can read: token ids that grow and are cut back. A `Sequence` is one."""

    token_ids: list[int]
    max_length: int

    def __len__(self) -> int: ...
    def __hash__(self) -> int: ...
    def fail(self, message: str) -> None: ...


@dataclass
class Reading:
    """What one model says after the last tokens of each sequence.

    Attributes:
        logits: ``[sequences, last, vocabulary]``; of a sequence that was asked for fewer, in its last rows.
        route_logits: ``[sequences, last, experts]`` from a router, else None.
    """

    logits: Tensor
    route_logits: Tensor | None = None


class AnyRunner(Protocol):
    """What a method needs of a runner; `Runner` is the fast one, `reference.UncachedRunner` the obvious one."""

    name: str

    @property
    def device(self) -> torch.device: ...
    def read(self, sequences: ListLike[Readable], last: int | ListLike[int] = 1) -> Reading: ...
    def rollback(self, sequence: Readable, length: int) -> None: ...
    def release(self, sequence: Readable) -> None: ...


class Runner:
    """Feeds each sequence exactly the tokens this model has not read yet, in one forward pass.

    Sequences that miss much more than the others (a new prompt among running answers) get a pass of their own where
    padding the others to their width would cost more.

    Args:
        model: a transformers causal LM or a `Router`, in whose outputs ``logits`` (and ``route_logits``) are found.
        name: how errors and traces call it.

    Attributes:
        tokens_read, passes: so far; padding and what was copied left out.
        tokens_reused: copied from rows that begin with the same tokens, see `reuse_prefixes`.
    """

    def __init__(self, model: Any, name: str):
        self.model = model.eval()
        use_fast_linears(self.model)
        self.name = name
        self.config = model.config.get_text_config()
        self.cache = SlotCache()
        self.prefixes: Prefixes | None = None
        self._weight_bytes = sum(weight.nbytes for weight in self.model.parameters())
        self.tokens_read = self.tokens_reused = 0
        self.passes = 0

    @property
    def device(self) -> torch.device:
        return self.model.device

    def reuse_prefixes(self, is_wanted: bool) -> None:
        """Whether sequences that join take what they have in common with others from these; see `Prefixes`."""
        if not is_wanted:
            self.prefixes = self.cache.before_growth = None
        elif self.prefixes is None:
            self.prefixes = Prefixes(self.cache)

    @property
    def pass_in_tokens(self) -> float:
        """Padded tokens that cost as much as one more pass."""
        balance = CPU_BALANCE if self.device.type == "cpu" else ACCELERATOR_BALANCE
        return balance * max(1.0, LEAST_PASS / max(1, self._weight_bytes))

    @property
    def pass_in_positions(self) -> float:
        """Cached positions that take as much memory as the weights, of which a pass reads every one."""
        return max(self._weight_bytes, LEAST_PASS) / max(1, self.cache.bytes_per_token)

    @torch.inference_mode()
    def read(self, sequences: ListLike[Readable], last: int | ListLike[int] = 1) -> Reading:
        """Read what was missed; return what the model says after each of the ``last`` tokens of every sequence.

        A sequence for which the model returns no finite logits fails, with the model named; the others go on.

        Args:
            last: for all sequences, or one for each.
        """
        lasts = [last] * len(sequences) if isinstance(last, int) else list(last)
        self._join(sequences, lasts)
        for sequence, mine in zip(sequences, lasts, strict=True):
            self.cache.cut(sequence, len(sequence) - mine)  # logits asked for again mean reading again
        self._read_long_prompts(sequences, lasts)
        groups = self._groups(sequences)
        readings = [
            self._forward([sequences[index] for index in group], max(lasts[index] for index in group))
            for group in groups
        ]
        reading = _in_order(_joined(readings, max(lasts)), [index for group in groups for index in group])
        for failed in _fail_without_logits(self.name, sequences, reading.logits, lasts):
            if self.prefixes is not None:
                self.prefixes.distrust(failed)
        return reading

    def missing(self, sequence: Readable) -> int:
        """Tokens that it has not read; of a sequence that has not joined all, though it may find them elsewhere."""
        return len(sequence) - self.cache.lengths.get(sequence, 0)

    @torch.inference_mode()
    def join(self, sequence: Readable) -> None:
        """Give a sequence its row before it is read, with what others have read of it; a no-op if it has one."""
        if sequence not in self.cache:
            self._give_rows([sequence])
            if self.prefixes is not None:
                self.tokens_reused += self.prefixes.take(sequence, sequence.token_ids, len(sequence) - 1)

    @torch.inference_mode()
    def read_ahead(self, sequences: ListLike[Readable], counts: ListLike[int]) -> None:
        """Read some of what was missed without asking for logits: so many tokens of each, all but the last at most."""
        for sequence in sequences:
            self.join(sequence)
        left = {
            sequence: min(count, self.missing(sequence) - 1) for sequence, count in zip(sequences, counts, strict=True)
        }
        while reading := [sequence for sequence, count in left.items() if count > 0]:
            parts = [min(left[sequence], PREFILL_CHUNK) for sequence in reading]
            for group in split_by_width(parts, self.pass_in_tokens):
                self._forward([reading[at] for at in group], 1, counts=[parts[at] for at in group])
            for sequence, part in zip(reading, parts, strict=True):
                left[sequence] -= part

    def rollback(self, sequence: Readable, length: int) -> None:
        """Cut back to the first ``length`` tokens; a no-op where the model has read no further."""
        if sequence in self.cache:
            self.cache.cut(sequence, length)

    def release(self, sequence: Readable) -> None:
        """Free whatever this model keeps of the sequence."""
        if sequence in self.cache:
            if self.prefixes is not None:
                self.prefixes.leave(sequence)
            self.cache.leave(sequence)

    def _join(self, sequences: ListLike[Readable], lasts: list[int]) -> None:
        """Rows for who is new; what several of them begin with, one of them reads for all."""
        new = [(each, last) for each, last in zip(sequences, lasts, strict=True) if each not in self.cache]
        self._give_rows([sequence for sequence, _ in new])
        if self.prefixes is None or not new:
            return
        most = [len(sequence) - last for sequence, last in new]  # the others are read again for their logits
        joined = [sequence for sequence, _ in new]
        for sequence, at_most in zip(joined, most, strict=True):
            self.tokens_reused += self.prefixes.take(sequence, sequence.token_ids, at_most)
        held = [self.cache.lengths[sequence] for sequence in joined]
        ids = [sequence.token_ids for sequence in joined]
        for shared in shared_beginnings(ids, most, held, self.pass_in_tokens):
            leader = joined[shared.leader]
            self.read_ahead([leader], [shared.length - self.cache.lengths[leader]])
            for follower in shared.followers:
                self.tokens_reused += self.prefixes.share(leader, joined[follower], shared.length)

    def _give_rows(self, sequences: ListLike[Readable]) -> None:
        """Rows that are long enough for what is known of the sequences, so that a prompt makes the cache grow once."""
        for sequence in sequences:
            self.cache.join(sequence, sequence.max_length)
        if sequences:
            longest = max(min(sequence.max_length, len(sequence) + GROWTH) for sequence in sequences)
            self.cache.make_room(longest)

    def _groups(self, sequences: ListLike[Readable]) -> list[list[int]]:
        """Which of them, by number, are read in one pass each; in the order of their rows, so that a full batch needs
        no gathering.
        """
        groups = split_by_width([self.missing(sequence) for sequence in sequences], self.pass_in_tokens)
        if any(len(group) > 1 for group in groups):
            lengths, cost = [len(sequence) for sequence in sequences], self.pass_in_positions
            groups = [part for group in groups for part in split_by_length(group, lengths, cost)]
        return [sorted(group, key=lambda index: self.cache.row(sequences[index])) for group in groups]

    def _read_long_prompts(self, sequences: ListLike[Readable], lasts: list[int]) -> None:
        pairs = list(zip(sequences, lasts, strict=True))
        while long := [sequence for sequence, last in pairs if self.missing(sequence) - last >= PREFILL_CHUNK]:
            self._forward(long, 1, counts=[PREFILL_CHUNK] * len(long))

    def _forward(self, sequences: list[Readable], last: int, counts: list[int] | None = None) -> Reading:
        plan = self.cache.plan(list(sequences), counts or [self.missing(sequence) for sequence in sequences])
        positions = self._positions(plan)
        output = self.model(
            input_ids=self._inputs(sequences, plan),
            position_ids=positions,
            attention_mask=self._masks(plan, positions),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=last,
        )
        self.cache.commit(list(sequences))
        if self.prefixes is not None:
            for sequence, start, end in zip(sequences, plan.starts, plan.ends, strict=True):
                self.prefixes.note(sequence, start, sequence.token_ids[start:end])
        self.tokens_read += sum(plan.counts)
        self.passes += 1
        return Reading(output.logits[:, -last:], getattr(output, "route_logits", None))

    def _inputs(self, sequences: list[Readable], plan: ReadPlan) -> Tensor:
        rows = [
            [0] * (plan.width - count) + sequence.token_ids[start : start + count]
            for sequence, start, count in zip(sequences, plan.starts, plan.counts, strict=True)
        ]
        return torch.tensor(rows, device=self.device)

    def _positions(self, plan: ReadPlan) -> Tensor:
        ends = torch.tensor(plan.ends, device=self.device)
        return (ends[:, None] + torch.arange(-plan.width, 0, device=self.device)).clamp(min=0)

    def _masks(self, plan: ReadPlan, positions: Tensor) -> Tensor | dict[str, Tensor] | None:
        if plan.is_uniform:
            return None
        return ragged_masks(self.config, positions, plan.longest, self.model.dtype)


def split_by_width(counts: list[int], pass_cost: float) -> list[list[int]]:
    """Indices of rows that are read together: cut wherever that saves more padding than a pass costs, in tokens."""
    return _split(sorted(range(len(counts)), key=counts.__getitem__), counts, pass_cost)


def split_by_length(rows: list[int], lengths: list[int], pass_cost: float) -> list[list[int]]:
    """Rows that are read together: attention runs over as many positions as the longest has, in every row.

    Args:
        lengths: of all rows, by their numbers.
        pass_cost: cached positions whose keys and values take as long to read as the model's weights.
    """
    if len(rows) < 2:
        return [rows]
    return _split(sorted(rows, key=lengths.__getitem__), lengths, pass_cost)


def _split(rows: list[int], counts: list[int], pass_cost: float) -> list[list[int]]:
    """``rows`` by ascending count; a cut spares the narrower part the padding to the widest row."""
    widest = counts[rows[-1]]
    savings = [(widest - counts[row]) * size for size, row in enumerate(rows, start=1)]
    cut = max(range(len(rows)), key=savings.__getitem__) + 1
    if savings[cut - 1] <= pass_cost:
        return [rows]
    return [*_split(rows[:cut], counts, pass_cost), *_split(rows[cut:], counts, pass_cost)]


def _joined(readings: list[Reading], last: int) -> Reading:
    if len(readings) == 1:
        return readings[0]
    routes = [_widened(reading.route_logits, last) for reading in readings if reading.route_logits is not None]
    logits = torch.cat([_widened(reading.logits, last) for reading in readings])
    return Reading(logits, torch.cat(routes) if routes else None)


def _widened(logits: Tensor, last: int) -> Tensor:
    """Rows of nothing in front, so that readings of different widths fit together."""
    return logits if logits.shape[1] == last else pad(logits, (0, 0, last - logits.shape[1], 0))


def _in_order(reading: Reading, order: list[int]) -> Reading:
    if order == sorted(order):
        return reading
    back = torch.tensor(order, device=reading.logits.device).argsort()
    routes = reading.route_logits
    return Reading(reading.logits[back], None if routes is None else routes[back.to(routes.device)])


def _fail_without_logits(name: str, sequences: ListLike[Readable], logits: Tensor, lasts: list[int]) -> list[Readable]:
    """Those that fail. The largest logit of a sane distribution is finite: NaN and +inf win any maximum, all -inf
    leaves no other.
    """
    largest = logits.amax(-1)
    if min(lasts) < logits.shape[1]:  # what lies in front of the rows asked for is padding
        asked = torch.tensor(lasts, device=logits.device)[:, None]
        is_padding = torch.arange(logits.shape[1], 0, -1, device=logits.device) > asked
        largest = largest.masked_fill(is_padding, 0)
    sane = largest.amax(1).isfinite()
    if bool(sane.all()):
        return []
    failed = [sequences[index] for index in (~sane).nonzero().flatten().tolist()]
    for sequence in failed:
        sequence.fail(f"model {name!r} returned NaN logits after {len(sequence)} tokens")
    return failed
