import random
from itertools import pairwise

from fusionroute.training.trainers.batches import LengthGroupedBatches


def draw(count: int, batch_size: int, seed: int = 0, epoch: int = 0) -> tuple[list[int], list[int]]:
    rng = random.Random(1)
    lengths = [rng.randint(1, 100) for _ in range(count)]
    sampler = LengthGroupedBatches(lengths, batch_size, seed)
    sampler.set_epoch(epoch)
    return lengths, list(sampler)


def test_every_index_comes_once() -> None:
    for count in (1, 7, 64, 1003):
        _, order = draw(count, 8)
        assert sorted(order) == list(range(count))


def test_batches_pad_little_and_stand_in_random_order() -> None:
    lengths, order = draw(1600, 8)
    batches = [[lengths[index] for index in order[at : at + 8]] for at in range(0, 1600, 8)]
    padded = sum(8 * max(batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)
    longest = [max(batch) for batch in batches]
    falls = sum(a > b for a, b in pairwise(longest))
    assert 0.4 < falls / len(longest) < 0.6, "a sorted order would nearly always rise or always fall"


def test_seed_and_epoch_decide_the_order() -> None:
    assert draw(100, 8)[1] == draw(100, 8)[1]
    assert draw(100, 8)[1] != draw(100, 8, seed=1)[1]
    assert draw(100, 8)[1] != draw(100, 8, epoch=1)[1]


def test_an_incomplete_batch_comes_last() -> None:
    lengths, order = draw(8 * 20 * 3 + 5, 8)
    batches = [[lengths[index] for index in order[at : at + 8]] for at in range(0, len(order), 8)]
    assert len(batches[-1]) == 5
    assert all(max(batch) - min(batch) < 30 for batch in batches[:-1])
