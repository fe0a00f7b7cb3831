"""Who is drawn to whom: Eqs. (3) to (6) by hand, and what must not be a neighbour."""

import math

import pytest
import torch
from torch import Tensor

from fusionroute.errors import DataError, ModelOutputError, SettingsError
from fusionroute.moe.neighbours import neighbours, random_neighbours

LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
ALL = torch.ones(4, dtype=torch.bool)


def cloud(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_and_their_weights_by_hand() -> None:
    found = neighbours(LINE, LINE, ALL, k=2, sigma=2.0, exclude_self=True)
    assert found.index.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    # of question 0: exp(-1/8) and exp(-9/8), so one is e times the other
    torch.testing.assert_close(found.weight[0], torch.tensor([math.e, 1.0]) / (math.e + 1))
    torch.testing.assert_close(found.weight.sum(1), torch.ones(4))
    assert found.weight.dtype == torch.float32
    assert found.empty == 0


def test_the_default_bandwidth_is_the_median_distance() -> None:
    # distances to the two nearest: 1 3, 1 2, 2 3, 4 6; their median is 2.5
    assert neighbours(LINE, LINE, ALL, k=2, exclude_self=True).sigma == 2.5
    assert neighbours(LINE, LINE, ALL, k=1, exclude_self=True).sigma == 1.5


def test_nobody_is_its_own_neighbour_and_only_successes_are_neighbours() -> None:
    table = cloud(200)
    allowed = torch.rand(200, generator=torch.Generator().manual_seed(1)) < 0.5
    for found in (
        neighbours(table, table, allowed, exclude_self=True),
        neighbours(table, table, allowed, epsilon=0.5, exclude_self=True),
        random_neighbours(200, allowed, 3, seed=0, exclude_self=True),
    ):
        there = found.weight > 0
        assert not ((found.index == torch.arange(200)[:, None]) & there).any()
        assert allowed[found.index[there]].all()
    others = neighbours(cloud(20, seed=2), table, allowed, exclude_self=False)
    assert allowed[others.index].all()
    # of questions that are references themselves but are not told so, those that succeeded find themselves
    itself = neighbours(table, table, allowed, k=1, exclude_self=False).index[:, 0] == torch.arange(200)
    assert itself.tolist() == allowed.tolist()


def test_small_bandwidths_keep_the_nearest_and_large_ones_weigh_alike() -> None:
    narrow = neighbours(LINE, LINE, ALL, k=2, sigma=1e-9, exclude_self=True)
    assert narrow.weight[:3].tolist() == [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    wide = neighbours(LINE, LINE, ALL, k=2, sigma=1e9, exclude_self=True)
    assert wide.weight.tolist() == [[0.5, 0.5]] * 4


def test_a_ball_holds_whoever_is_similar_enough_and_may_be_empty() -> None:
    # sigma 1.5 (median distance of the nearest): a similarity of exp(-4/4.5) = 0.411 is a distance of 2
    found = neighbours(LINE, LINE, ALL, k=1, epsilon=0.41, exclude_self=True)
    assert found.sigma == 1.5
    assert found.index.tolist() == [[1, 0], [0, 2], [1, 0], [0, 0]]
    near, far = math.exp(-1 / 4.5), math.exp(-4 / 4.5)
    expected = torch.tensor([[1.0, 0.0], [near / (near + far), far / (near + far)], [1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(found.weight, expected)
    assert found.empty == 1
    assert neighbours(LINE, LINE, ALL, sigma=0.1, epsilon=1.0, exclude_self=True).empty == 4


def test_fewer_neighbours_than_asked_for() -> None:
    allowed = torch.tensor([True, True, False, False])
    found = neighbours(LINE, LINE, allowed, k=3, exclude_self=True)
    assert (found.weight > 0).sum(1).tolist() == [1, 1, 2, 2]
    torch.testing.assert_close(found.weight.sum(1), torch.ones(4))
    alone = neighbours(LINE, LINE, torch.tensor([True, False, False, False]), k=3, exclude_self=True)
    assert alone.weight.tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_a_block_does_not_matter() -> None:
    table, allowed = cloud(100), torch.ones(100, dtype=torch.bool)
    for options in ({}, {"epsilon": 0.6}):
        whole = neighbours(table, table, allowed, exclude_self=True, **options)
        parts = neighbours(table, table, allowed, exclude_self=True, block=7, **options)
        assert parts.index.tolist() == whole.index.tolist()
        torch.testing.assert_close(parts.weight, whole.weight)


@pytest.mark.parametrize("options", [{}, {"sigma": 1.0}, {"epsilon": 0.5, "sigma": 1.0}])
def test_without_successes_there_is_no_graph(options: dict[str, float]) -> None:
    message = r"no question has a neighbour: of 4 questions the model answers 0 correctly"
    with pytest.raises(DataError, match=message):
        neighbours(LINE, LINE, ~ALL, exclude_self=True, **options)
    with pytest.raises(DataError, match=message):
        random_neighbours(4, ~ALL, 3, seed=0, exclude_self=True)


def test_only_oneself_is_no_neighbour() -> None:
    with pytest.raises(DataError, match="of 1 questions the model answers 1 correctly"):
        neighbours(LINE[:1], LINE[:1], ALL[:1], exclude_self=True)


def test_copies_give_no_bandwidth() -> None:
    copies = LINE[[0, 0, 0, 3]]
    with pytest.raises(DataError, match=r"median distance .* is 0 \(of 4 questions the model answers 3 correctly\)"):
        neighbours(copies, copies, torch.tensor([True, True, True, False]), k=1, exclude_self=True)
    kept = neighbours(copies, copies, ALL, k=1, sigma=1.0, exclude_self=True)
    assert kept.weight.tolist() == [[1.0]] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 1 or more neighbours; got 0"),
        ({"epsilon": 0.0}, "epsilon is a similarity above 0 and at most 1; got 0.0"),
        ({"epsilon": 1.5}, "epsilon is a similarity above 0 and at most 1; got 1.5"),
        ({"sigma": -1.0}, "sigma is a distance above 0; got -1.0"),
        ({"sigma": float("nan")}, "sigma is a distance above 0; got nan"),
    ],
)
def test_settings_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        neighbours(LINE, LINE, ALL, exclude_self=True, **options)


def test_embeddings_that_are_no_numbers() -> None:
    broken = LINE.clone()
    broken[2] = float("nan")
    with pytest.raises(ModelOutputError, match="1 of 4 embeddings are no numbers"):
        neighbours(LINE, broken, ALL, exclude_self=False)


def test_random_neighbours_are_all_equally_likely_and_different() -> None:
    allowed = torch.tensor([True, True, False, True, True, True])
    seen = torch.zeros(6, 6)
    for seed in range(1500):
        found = random_neighbours(6, allowed, 2, seed, exclude_self=True)
        assert (found.index[:, 0] != found.index[:, 1]).all()
        seen.scatter_add_(1, found.index, torch.ones(6, 2))
    assert found.weight.tolist() == [[0.5, 0.5]] * 6
    # two of five for question 2, which failed; two of the other four for the rest. 1500 draws: sd below 20
    expected = allowed.float().repeat(6, 1) * 750
    expected[2] = allowed.float() * 600
    expected.fill_diagonal_(0)
    assert ((seen - expected).abs() < 80).all(), seen
    assert (seen[expected == 0] == 0).all()


def test_random_neighbours_depend_on_the_seed_alone() -> None:
    allowed = torch.ones(50, dtype=torch.bool)
    first, again, other = (random_neighbours(50, allowed, 3, seed, exclude_self=True).index for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()


def test_random_neighbours_where_there_are_few() -> None:
    allowed = torch.tensor([True, True, False])
    found = random_neighbours(3, allowed, 3, seed=0, exclude_self=True)
    assert found.weight.sum(1).tolist() == [1.0, 1.0, 1.0]
    there = [set(index[weight > 0].tolist()) for index, weight in zip(found.index, found.weight, strict=True)]
    assert there == [{1}, {0}, {0, 1}]
