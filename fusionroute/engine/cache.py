"""The key-value cache behind a runner: one row per sequence, each at its own length.

Letters in shapes: B rows read in this pass, T new tokens (the widest row's), L positions in use, H heads, D head size.
Knows nothing about sequences: rows belong to whatever handles their owner uses.
"""

import math
import mmap
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

LAZILY = 2**22  # bytes from which zeros are not written
RESERVED = (16, 2**13)  # rows and positions, at least, where reserving them takes no memory


@dataclass
class ReadPlan:
    """Where one forward pass reads and writes. Rows shorter than T are padded on the left, so all end together."""

    rows: list[int]
    starts: list[int]
    counts: list[int]

    @property
    def width(self) -> int:
        return max(self.counts)

    @property
    def ends(self) -> list[int]:
        return [start + count for start, count in zip(self.starts, self.counts, strict=True)]

    @property
    def longest(self) -> int:
        return max(self.ends)

    @property
    def is_uniform(self) -> bool:
        """All rows at one length and reading equally many tokens: then transformers' own mask is right, and fastest."""
        return len(set(self.starts)) == 1 and len(set(self.counts)) == 1

    @property
    def is_contiguous(self) -> bool:
        return self.rows == list(range(self.rows[0], self.rows[0] + len(self.rows)))


@dataclass(frozen=True)
class Stretch:
    """Keys and values of the first positions of one row, ``[H, positions, D]`` for each layer, on its own device."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def length(self) -> int:
        return self.keys[0].shape[1] if self.keys else 0

    @property
    def is_finite(self) -> bool:
        """Whether no layer holds a NaN: each token attends to itself, so one would have reached the last layer."""
        return all(bool(last[-1].isfinite().all()) for last in (self.keys, self.values) if last)

    def begin(self, length: int) -> "Stretch":
        """Its first positions alone, as a view."""
        return Stretch([keys[:, :length] for keys in self.keys], [values[:, :length] for values in self.values])

    def copy(self) -> "Stretch":
        return Stretch([keys.clone() for keys in self.keys], [values.clone() for values in self.values])


class SlotCache(Cache):
    """A ``transformers.Cache`` whose rows are joined, cut back and left independently of each other.

    Memory is one rectangle ``[rows, H, positions, D]`` per layer for keys and one for values. They grow by doubling,
    rows times positions never beyond ``token_limit``, provided that rows times the longest promised length fits it:
    whoever lets handles join sees to that. Large ones on a CPU reserve much more at once, which takes no memory before
    it is written, and spares everybody the move when rows grow longer or another joins.

    Attributes:
        before_growth: told how many tokens the rectangle is about to have, so that others give way in time.
    """

    def __init__(self, token_limit: int = 2**62):
        super().__init__(layers=[])
        self.token_limit = token_limit
        self.lengths: dict[Hashable, int] = {}
        self._row: dict[Hashable, int] = {}
        self._promised: dict[Hashable, int] = {}
        self._written: dict[int, int] = {}  # by row: positions behind which nothing but zeros stands
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._capacity = (0, 0)  # rows, positions
        self._measured = (0, 0)  # buffers, bytes of one position of one row in them
        self._plan: ReadPlan | None = None
        self.before_growth: Callable[[int], None] | None = None

    def row(self, handle: Hashable) -> int:
        return self._row[handle]

    def __contains__(self, handle: Hashable) -> bool:
        return handle in self._row

    @torch.inference_mode()
    def join(self, handle: Hashable, max_length: int) -> None:
        """Give ``handle`` an empty row; it promises never to be longer than ``max_length``."""
        row = self._row[handle] = len(self._row)
        self.lengths[handle], self._promised[handle] = 0, max_length
        self._clear(row, 0)  # a former owner's NaN would survive any mask (0 x NaN is NaN)

    def cut(self, handle: Hashable, length: int) -> None:
        """Forget the positions of ``handle`` from ``length`` on."""
        self.lengths[handle] = min(self.lengths[handle], length)

    @torch.inference_mode()
    def leave(self, handle: Hashable) -> None:
        """Free the row; the last row moves into the gap, so rows in use stay contiguous."""
        row = self._row.pop(handle)
        del self.lengths[handle], self._promised[handle]
        last = len(self._row)
        if row != last:
            moved = next(other for other, at in self._row.items() if at == last)
            self._row[moved] = row
            length = self.lengths[moved]
            self._clear(row, length)
            for buffer in (*self._keys, *self._values):
                if last < len(buffer):
                    buffer[row, :, :length] = buffer[last, :, :length]
            self._written[row] = length

    def stretch(self, handle: Hashable, length: int) -> Stretch:
        """The first ``length`` positions of a row, as they are now: a view, which the next pass may overwrite."""
        row = self._row[handle]
        return Stretch(
            [keys[row, :, :length] for keys in self._keys], [values[row, :, :length] for values in self._values]
        )

    @torch.inference_mode()
    def put(self, handle: Hashable, stretch: Stretch) -> None:
        """Let the row of ``handle``, which holds the first of these positions, go on with a copy of the others."""
        self.make_room(stretch.length)
        row, held = self._row[handle], self.lengths[handle]
        self._will_write(row, stretch.length)
        for buffers, layers in ((self._keys, stretch.keys), (self._values, stretch.values)):
            for buffer, positions in zip(buffers, layers, strict=True):
                buffer[row, :, held : stretch.length] = positions[:, held:]
        self.lengths[handle] = stretch.length

    def plan(self, handles: list[Hashable], counts: list[int]) -> ReadPlan:
        """Prepare one forward pass in which ``handles[i]`` reads ``counts[i]`` more tokens."""
        rows, starts = [self._row[handle] for handle in handles], [self.lengths[handle] for handle in handles]
        self._plan = ReadPlan(rows, starts, counts)
        self.make_room(self._plan.longest)
        for row, end in zip(rows, self._plan.ends, strict=True):
            self._will_write(row, end)
        self._index = None if self._plan.is_uniform and self._plan.is_contiguous else _WriteIndex(self._plan)
        return self._plan

    def commit(self, handles: list[Hashable]) -> None:
        """The pass ended well: what it wrote now counts."""
        assert self._plan is not None
        for handle, end in zip(handles, self._plan.ends, strict=True):
            self.lengths[handle] = end
        self._plan = None

    @property
    def capacity(self) -> tuple[int, int]:
        """Rows and positions of every layer's rectangle that may be written."""
        return self._capacity

    @property
    def nbytes(self) -> int:
        """Of what may be written; what is reserved beyond takes no memory."""
        rows, positions = self._capacity
        return rows * positions * self.bytes_per_token

    @property
    def bytes_per_token(self) -> int:
        """Of one position of one row, in all layers."""
        buffers = len(self._keys) + len(self._values)
        if self._measured[0] != buffers:
            self._measured = (buffers, sum(each[0, :, 0].nbytes for each in (*self._keys, *self._values)))
        return self._measured[1]

    def make_room(self, longest: int) -> None:
        """Have room for all rows, one of them so long; one layer after another, so that little is held twice."""
        rows, positions = self._capacity
        need_rows, need_positions = len(self._row), max(longest, *self.lengths.values())
        if need_rows <= rows and need_positions <= positions:
            return
        promised = max(need_positions, *self._promised.values())
        positions = min(promised, max(need_positions, positions if need_positions <= positions else 2 * positions))
        room = self.token_limit // positions
        rows = max(need_rows, min(rows if need_rows <= rows else 2 * rows, room))
        if self.before_growth is not None:
            self.before_growth(rows * positions)
        if not self._is_reserved(rows, positions):
            self._capacity = (0, 0)  # whoever runs out of memory halfway begins anew
            for buffers in (self._keys, self._values):
                for layer, old in enumerate(buffers):
                    buffers[layer] = self._moved(old, rows, positions)
            self._written = {row: self.lengths[handle] for handle, row in self._row.items()}
        self._capacity = (rows, positions)

    # what transformers' models call

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write ``[B, H, T, D]`` keys and values at (row, position); return the rows in use, ``[B, H, L, D]``."""
        return self._write(self._keys, key_states, layer_idx), self._write(self._values, value_states, layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before this pass; models use it only where rows are uniform, else explicit positions are given."""
        return self._plan.starts[0] if self._plan is not None else max(self.lengths.values(), default=0)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def _write(self, buffers: list[Tensor], new: Tensor, layer: int) -> Tensor:
        plan = self._plan
        assert plan is not None, "a forward pass needs a plan"
        buffer = self._buffer(buffers, new, layer)
        first, last = plan.rows[0], plan.rows[-1] + 1
        if self._index is None:
            buffer[first:last, :, plan.starts[0] : plan.longest] = new
        else:
            self._index.write(buffer, new)
        if plan.is_contiguous:
            return buffer[first:last, :, : plan.longest]
        return buffer[:, :, : plan.longest].index_select(0, self._index.rows(buffer.device))  # type: ignore[union-attr]

    def _buffer(self, buffers: list[Tensor], new: Tensor, layer: int) -> Tensor:
        """The layer's rectangle, made when it is first written."""
        if layer == len(buffers):
            buffers.append(self._rectangle(new, *self._capacity))
        return buffers[layer]

    def _will_write(self, row: int, end: int) -> None:
        self._written[row] = max(end, self._written.get(row, 0))

    def _clear(self, row: int, start: int) -> None:
        """Nothing but zeros behind ``start`` in that row; what was never written is not touched."""
        end = self._written.pop(row, 0)
        for buffer in (*self._keys, *self._values) if start < end else ():
            if row < len(buffer):
                buffer[row, :, start:end].zero_()

    def _is_reserved(self, rows: int, positions: int) -> bool:
        """Whether there is room without a move; where it shrinks one is wanted, as it frees what was written there."""
        buffers = (*self._keys, *self._values)
        fits = all(rows <= len(each) and positions <= each.shape[2] for each in buffers)
        return bool(buffers) and fits and rows >= self._capacity[0] and positions >= self._capacity[1]

    def _rectangle(self, like: Tensor, rows: int, positions: int) -> Tensor:
        """Zeros; large ones on a CPU in memory that the system hands out as it is written: room for a long answer or
        prompt then costs nothing while rows stay short, neither memory nor the seconds for which everybody would wait.
        """
        heads, size = like.shape[1], like.shape[3]
        promised = max(positions, *self._promised.values())
        if like.device.type != "cpu" or rows * heads * promised * size * like.element_size() < LAZILY:
            return like.new_zeros(rows, heads, positions, size)
        shape = max(rows, RESERVED[0]), heads, max(promised, RESERVED[1]), size
        return torch.frombuffer(_untouched(math.prod(shape) * like.element_size()), dtype=like.dtype).view(shape)

    def _moved(self, old: Tensor, rows: int, positions: int) -> Tensor:
        """What rows hold, in a larger rectangle; what lies behind a row's length says nothing."""
        new = self._rectangle(old, rows, positions)
        for handle, row in self._row.items():
            length = self.lengths[handle]
            if length:
                new[row, :, :length] = old[row, :, :length]
        return new


def _untouched(nbytes: int) -> mmap.mmap:
    """Zeros that the system hands out by small pages, as they are written; huge ones would be memory at once."""
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return mmap.mmap(-1, nbytes)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


class _WriteIndex:
    """Row, position and source column of every new token, padding left out; moved to each device once."""

    def __init__(self, plan: ReadPlan):
        width = plan.width
        self._plan_rows = torch.tensor(plan.rows)
        batch = torch.repeat_interleave(torch.arange(len(plan.rows)), torch.tensor(plan.counts))
        column = torch.cat([torch.arange(width - count, width) for count in plan.counts])
        position = torch.cat([torch.arange(start, end) for start, end in zip(plan.starts, plan.ends, strict=True)])
        self._parts = (self._plan_rows[batch], position, batch, column)
        self._on: dict[torch.device, tuple[Tensor, ...]] = {}

    def rows(self, device: torch.device) -> Tensor:
        return self._to(device)[-1]

    def write(self, buffer: Tensor, new: Tensor) -> None:
        rows, position, batch, column, _ = self._to(buffer.device)
        buffer[rows, :, position] = new[batch, :, column]

    def _to(self, device: torch.device) -> tuple[Tensor, ...]:
        if device not in self._on:
            self._on[device] = tuple(part.to(device) for part in (*self._parts, self._plan_rows))
        return self._on[device]
