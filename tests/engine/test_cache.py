import random
from functools import partial

import psutil
import pytest
import torch

from fusionroute.engine.cache import SlotCache

HEADS, SIZE = 2, 4


def read(cache: SlotCache, handles: list[str], counts: list[int], value: float) -> torch.Tensor:
    """One pass that writes ``value`` + row number for every new token; returns the keys that attention sees."""
    plan = cache.plan(handles, counts)
    new = torch.stack([torch.full((HEADS, plan.width, SIZE), value + at) for at in range(len(handles))])
    keys, _ = cache.update(new, new, 0)
    cache.commit(handles)
    return keys


def test_rows_keep_their_own_lengths_and_padding_is_not_written() -> None:
    cache = SlotCache()
    for handle in "ab":
        cache.join(handle, 10)
    read(cache, ["a", "b"], [3, 1], 1.0)
    assert cache.lengths == {"a": 3, "b": 1}
    keys = read(cache, ["a", "b"], [1, 2], 5.0)
    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 5]
    assert keys[1, 0, :3, 0].tolist() == [2, 6, 6]


def test_a_cut_row_is_written_over_from_the_cut() -> None:
    cache = SlotCache()
    cache.join("a", 10)
    read(cache, ["a"], [5], 1.0)
    cache.cut("a", 2)
    cache.cut("a", 9)  # there is nothing beyond; a cut never lengthens
    keys = read(cache, ["a"], [1], 7.0)
    assert keys[0, 0, :, 0].tolist() == [1, 1, 7]


def test_the_last_row_moves_into_a_gap_and_a_new_row_starts_clean() -> None:
    cache = SlotCache()
    for handle in "abc":
        cache.join(handle, 10)
    read(cache, ["a", "b", "c"], [2, 2, 3], 1.0)
    cache.leave("a")
    assert (cache.row("c"), cache.row("b")) == (0, 1)
    cache.join("d", 10)
    keys = read(cache, ["c", "b", "d"], [1, 1, 1], float("nan"))
    assert keys[0, 0, :3, 0].tolist() == [3, 3, 3]
    cache.leave("d")
    cache.join("e", 10)
    assert read(cache, ["e"], [1], 4.0).isfinite().all(), "a NaN of a former owner survives any mask"
    assert cache._keys[0][cache.row("e")].isfinite().all()


def test_memory_grows_by_doubling_and_never_beyond_the_limit() -> None:
    cache = SlotCache(token_limit=40)
    cache.join("long", 20)
    read(cache, ["long"], [3], 1.0)
    assert cache.capacity == (1, 3)
    read(cache, ["long"], [1], 1.0)
    assert cache.capacity == (1, 6)
    cache.join("other", 20)
    read(cache, ["long", "other"], [13, 1], 1.0)
    assert cache.capacity == (2, 17)
    rows, positions = cache.capacity
    assert rows * positions <= 40
    assert cache.nbytes == 2 * rows * positions * HEADS * SIZE * 4


def test_a_long_row_that_left_gives_its_room_to_many_short_ones() -> None:
    cache = SlotCache(token_limit=40)
    cache.join("long", 40)
    read(cache, ["long"], [40], 1.0)
    cache.leave("long")
    for number in range(8):
        cache.join(str(number), 5)
        read(cache, [str(number)], [5], float(number))
    rows, positions = cache.capacity
    assert rows >= 8
    assert rows * positions <= 40
    assert cache._keys[0][cache.row("3"), 0, :5, 0].tolist() == [3] * 5


def test_others_give_way_before_the_rectangle_grows() -> None:
    cache, told = SlotCache(token_limit=40), []
    cache.before_growth = lambda tokens: told.append((tokens, cache.capacity))
    cache.join("long", 20)
    for count in (3, 1, 1):
        read(cache, ["long"], [count], 1.0)
    assert told == [(3, (0, 0)), (6, (1, 3))]


def test_all_layers_are_as_large_as_the_cache_says_also_between_passes() -> None:
    cache = SlotCache(token_limit=40)
    cache.join("a", 20)
    cache.plan(["a"], [3])
    new = torch.ones(1, HEADS, 3, SIZE)
    for layer in range(5):
        cache.update(new, new, layer)
    cache.commit(["a"])
    assert cache.bytes_per_token == 5 * 2 * HEADS * SIZE * 4
    cache.join("b", 20)
    cache.make_room(12)
    assert cache.capacity == (2, 12)
    assert cache.nbytes == 2 * 12 * cache.bytes_per_token
    assert cache.stretch("a", 3).keys[4].eq(1).all()


def test_a_cache_that_ran_out_of_memory_while_it_grew_can_be_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, moved = SlotCache(), SlotCache._moved
    cache.join("a", 20)
    read(cache, ["a"], [3], 1.0)

    def fails(*_: object) -> None:
        monkeypatch.setattr(cache, "_moved", partial(moved, cache))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(cache, "_moved", fails)
    with pytest.raises(torch.OutOfMemoryError):
        cache.make_room(9)
    assert read(cache, ["a"], [4], 2.0)[0, 0, :, 0].tolist() == [1, 1, 1, 2, 2, 2, 2]


def test_a_row_begins_with_a_copy_of_another() -> None:
    cache = SlotCache()
    for handle in "ab":
        cache.join(handle, 20)
    read(cache, ["a"], [6], 3.0)
    cache.put("b", cache.stretch("a", 4))
    assert cache.lengths == {"a": 6, "b": 4}
    kept = cache.stretch("a", 6).copy()
    cache.leave("a")
    keys = read(cache, ["b"], [1], 8.0)
    assert keys[0, 0, :, 0].tolist() == [3, 3, 3, 3, 8]
    cache.cut("b", 2)
    cache.put("b", kept.begin(5))
    assert cache.lengths == {"b": 5}
    assert read(cache, ["b"], [1], 9.0)[0, 0, :, 0].tolist() == [3, 3, 3, 3, 3, 9]
    assert (kept.length, kept.is_finite) == (6, True)
    kept.values[-1][0, 2, 0] = float("nan")
    assert not kept.is_finite
    assert kept.begin(2).is_finite


def test_whatever_joins_leaves_and_is_cut_a_row_begins_without_a_trace_of_its_former_owners() -> None:
    chance, cache = random.Random(0), SlotCache()
    alive: list[str] = []
    for step in range(600):
        action = chance.choice(["join", "join", "read", "read", "read", "cut", "leave"])
        if action == "join" and len(alive) < 6:
            alive.append(f"{step}")
            cache.join(alive[-1], 64)
            if cache.capacity[0] > cache.row(alive[-1]):
                assert not cache._keys[0][cache.row(alive[-1])].any(), "former owners wrote nothing but NaN"
        elif alive and action == "read":
            handle = chance.choice(alive)
            if cache.lengths[handle] < 48:
                read(cache, [handle], [chance.randrange(1, 16)], float("nan"))
        elif alive and action == "cut":
            handle = chance.choice(alive)
            cache.cut(handle, chance.randrange(cache.lengths[handle] + 1))
        elif alive and action == "leave":
            cache.leave(alive.pop(chance.randrange(len(alive))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_room_on_a_cpu_is_no_memory_until_it_is_written(dtype: torch.dtype) -> None:
    cache, process = SlotCache(), psutil.Process()
    cache.join("short", 10)
    cache.join("long", 2**16)
    before = process.memory_info().rss
    cache.make_room(2**16)
    plan = cache.plan(["short"], [1])
    new = torch.ones(1, 64, plan.width, 64, dtype=dtype)
    keys, _ = cache.update(new, new, 0)
    assert keys.dtype == dtype
    assert keys.tolist() == new.tolist()
    assert cache.nbytes >= 2**30
    assert process.memory_info().rss - before < 2**26


def test_what_was_reserved_is_written_without_a_move_and_cleared_for_the_next() -> None:
    cache = SlotCache()
    for handle in ("one", "other"):
        cache.join(handle, 2**14)
    new = torch.ones(2, 8, 100, 32)
    cache.plan(["one", "other"], [100, 100])
    first = cache.update(new, new, 0)[0].data_ptr()
    cache.commit(["one", "other"])
    assert cache.capacity == (2, 100)
    assert cache.nbytes == 2 * 100 * cache.bytes_per_token
    cache.cut("other", 50)
    cache.plan(["one", "other"], [7, 57])
    assert cache.update(2 * new[:, :, :57], new[:, :, :57], 0)[0].data_ptr() == first, "nothing moved"
    cache.commit(["one", "other"])
    assert cache.capacity == (2, 200)
    cache.leave("one")
    cache.leave("other")
    cache.join("next", 2**14)
    cache.plan(["next"], [150])
    keys, _ = cache.update(torch.zeros(1, 8, 150, 32), torch.zeros(1, 8, 150, 32), 0)
    assert not keys.any()
    cache.make_room(200)
    assert not cache.stretch("next", 200).keys[0].any(), "what former owners wrote is gone"
