"""Beginnings that one model has read before: whoever begins the same takes their keys and values instead of reading.

Knows the tokens that stand behind each row of a cache, and copies of rows that have left. Knows nothing of models.
"""

import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch

from fusionroute.engine.cache import SlotCache, Stretch

SHORTEST = 32  # tokens; to copy fewer costs about what it costs to read them in a pass that is made anyway
STORED = 2**14  # tokens of rows that have left, at most


@dataclass(frozen=True, eq=False)
class Stored:
    """A copy of a row that has left."""

    ids: list[int]
    stretch: Stretch


class Prefixes:
    """What the rows of one cache hold, and what rows held that have left it, the least lately used forgotten first.

    The rectangle of the cache and the copies are together never more than the cache's ``token_limit``: where the
    rectangle is about to grow, copies are forgotten. Only tokens that were given to the model are known here, noted as
    they are read, so it does not matter what becomes of a handle's own ``token_ids`` afterwards.

    Nothing here notices that the model's weights were changed: whoever changes them calls `forget`.
    """

    def __init__(self, cache: SlotCache):
        self.cache = cache
        me = weakref.proxy(self)  # a cycle of the two would keep gigabytes until Python looks for cycles
        cache.before_growth = lambda tokens: me._give_way(tokens)
        self.stored: list[Stored] = []  # the latest used last
        self._ids: dict[Hashable, list[int]] = {}
        self._distrusted: set[Hashable] = set()

    @property
    def tokens_stored(self) -> int:
        return sum(len(each.ids) for each in self.stored)

    def note(self, handle: Hashable, start: int, ids: list[int]) -> None:
        """The model has read ``ids`` for this row, behind its first ``start`` tokens; what stood there is gone."""
        known = self._ids.setdefault(handle, [])
        if len(known) >= start:  # else it was not watched from its beginning, and nothing is known of it
            known[start:] = ids

    def distrust(self, handle: Hashable) -> None:
        """The model has failed on this row: nobody is to begin with it."""
        self._distrusted.add(handle)

    def take(self, handle: Hashable, ids: list[int], most: int) -> int:
        """Let an empty row begin with what is known of ``ids[:most]``; returns how many tokens that was."""
        better = list(self._better(handle, ids, most))
        if not better:
            return 0
        length, source = better[-1]
        if isinstance(source, Stored):
            self.stored.remove(source)
            self.stored.append(source)
        return self._put(handle, source, length)

    def share(self, leader: Hashable, follower: Hashable, length: int) -> int:
        """Let the row of ``follower`` begin with the first tokens of another; returns how many it has not had."""
        before = self.cache.lengths[follower]
        return max(0, self._put(follower, leader, length) - before)

    def leave(self, handle: Hashable) -> None:
        """The row is about to leave: keep a copy of what it holds, as far as there is room."""
        ids = self._known(handle)[:STORED]
        self._ids.pop(handle, None)
        if len(ids) >= SHORTEST and handle not in self._distrusted:
            self._store(handle, ids)
        self._distrusted.discard(handle)

    def forget(self) -> None:
        """Nobody is to begin with anything that was read until now; rows that are in the cache go on."""
        self.stored.clear()
        self._ids.clear()

    def _known(self, handle: Hashable) -> list[int]:
        """The tokens that a row surely holds."""
        return self._ids.get(handle, [])[: self.cache.lengths[handle]]

    def _better(self, handle: Hashable, ids: list[int], most: int) -> Iterator[tuple[int, Hashable | Stored]]:
        """Sources of growing lengths, a row that is in the cache before a copy of as many tokens."""
        best = SHORTEST - 1
        sources: list[tuple[list[int], Hashable | Stored]] = [
            (known, row) for row, known in self._ids.items() if row != handle and row not in self._distrusted
        ]
        for known, source in [*sources, *((each.ids, each) for each in self.stored)]:
            end = most if isinstance(source, Stored) else min(most, self.cache.lengths[source])
            if end > best and known[: best + 1] == ids[: best + 1]:
                best = common_length(ids, known, end)
                yield best, source

    def _put(self, handle: Hashable, source: Hashable | Stored, length: int) -> int:
        """Copy what the row does not hold; 0 and nothing done where that would spread a NaN."""
        self.cache.make_room(length)
        stretch = source.stretch.begin(length) if isinstance(source, Stored) else self.cache.stretch(source, length)
        if not stretch.is_finite:
            return 0
        self.cache.put(handle, stretch)
        ids = source.ids if isinstance(source, Stored) else self._ids[source]
        self.note(handle, 0, ids[:length])
        return length

    @torch.inference_mode()
    def _store(self, handle: Hashable, ids: list[int]) -> None:
        for each in self.stored:
            if each.ids[: len(ids)] == ids:  # all of it is known, and more
                self.stored.remove(each)
                self.stored.append(each)
                return
        rows, positions = self.cache.capacity
        room = self._beside(rows * positions)
        ids = ids[:room]
        stretch = self.cache.stretch(handle, len(ids))
        if len(ids) < SHORTEST or not stretch.is_finite:
            return
        self.stored = [each for each in self.stored if each.ids != ids[: len(each.ids)]]
        self._shrink(room - len(ids))
        self.stored.append(Stored(ids, stretch.copy()))

    def _beside(self, rectangle: int) -> int:
        """Tokens that there is room for beside a rectangle of so many."""
        return max(0, min(STORED, self.cache.token_limit - rectangle))

    def _give_way(self, rectangle: int) -> None:
        self._shrink(self._beside(rectangle))

    def _shrink(self, room: int) -> None:
        held = self.tokens_stored
        while held > room:
            held -= len(self.stored.pop(0).ids)


@dataclass(frozen=True)
class Shared:
    """Tokens that several rows begin with: ``leader`` reads them, ``followers`` copy them. Numbers are of rows."""

    leader: int
    followers: tuple[int, ...]
    length: int


def shared_beginnings(ids: list[list[int]], most: list[int], known: list[int], pass_cost: float) -> list[Shared]:
    """Who should read what for whom, in this order, if these rows are to be read at once.

    Args:
        ids: of each row.
        most: how many of its tokens may be copied.
        known: how many it holds already.
        pass_cost: what has to be saved, in tokens, for a pass of the leader's own.
    """
    plan: list[Shared] = []
    rows = [row for row in range(len(ids)) if most[row] >= SHORTEST]
    _descend(sorted(rows, key=lambda row: ids[row]), ids, most, list(known), pass_cost, plan)
    return plan


def _descend(
    rows: list[int],  # in the order of their ids
    ids: list[list[int]],
    most: list[int],
    held: list[int],
    pass_cost: float,
    plan: list[Shared],
) -> None:
    if len(rows) < 2:
        return
    length = common_length(ids[rows[0]], ids[rows[-1]], min(most[row] for row in rows))
    leader = max(rows, key=held.__getitem__)
    followers = tuple(row for row in rows if row != leader and length - held[row] >= SHORTEST)
    if sum(length - held[row] for row in followers) > (pass_cost if held[leader] < length else 0):
        plan.append(Shared(leader, followers, length))
        for row in (leader, *followers):
            held[row] = max(held[row], length)
    for group in _by_next(rows, length, ids, most):
        _descend(group, ids, most, held, pass_cost, plan)


def _by_next(rows: list[int], length: int, ids: list[list[int]], most: list[int]) -> list[list[int]]:
    """Rows that go on alike after ``length`` tokens; without those that may not copy more."""
    groups: dict[int, list[int]] = {}
    for row in rows:
        if most[row] > length:
            groups.setdefault(ids[row][length], []).append(row)
    return list(groups.values())


def common_length(one: list[int], other: list[int], most: int) -> int:
    """How many tokens both begin with, at most so many; compared by slices, which takes no time per token here."""
    low, high = 0, min(most, len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
