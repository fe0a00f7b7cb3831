"""Exact search against the plain matrix of distances."""

import pytest
import torch
from torch import Tensor

from fusionroute.ops.nearest import nearest, within


def rows(n: int, d: int = 7, seed: int = 0, far: float = 0.0) -> Tensor:
    """Multiples of 1/64, which stay what they are far from the origin."""
    return (torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 64).round() / 64 + far


def plain(queries: Tensor, references: Tensor, allowed: Tensor | None, exclude_self: bool) -> Tensor:
    square = (queries[:, None] - references).double().square().sum(-1)
    if allowed is not None:
        square[:, ~allowed] = torch.inf
    if exclude_self:
        square.fill_diagonal_(torch.inf)
    return square


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("far", [0.0, 4096.0])  # hidden states lie far from the origin
def test_nearest_is_the_plain_search(exclude_self: bool, far: float) -> None:
    references = rows(50, far=far)
    queries = references if exclude_self else rows(50, seed=1, far=far)
    allowed = torch.rand(50, generator=torch.Generator().manual_seed(2)) < 0.6
    found = nearest(queries, references, 4, allowed=allowed, exclude_self=exclude_self, block=8)
    square, index = plain(queries, references, allowed, exclude_self).sort(dim=1, stable=True)
    assert found.index.tolist() == index[:, :4].tolist()
    torch.testing.assert_close(found.square, square[:, :4], rtol=1e-4, atol=0)
    assert allowed[found.index].all()


def test_of_equals_the_first_is_taken_and_never_oneself() -> None:
    table = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]) + 1000.1
    found = nearest(table, table, 2, exclude_self=True)
    assert found.index.tolist() == [[2, 3], [0, 2], [0, 3], [0, 2]]
    assert found.square[[0, 2, 3]].eq(0).all()


def test_what_is_not_there_is_infinitely_far() -> None:
    table = torch.tensor([[0.0], [2.0], [5.0]])
    found = nearest(table, table, 3, allowed=torch.tensor([True, False, False]), exclude_self=True)
    assert found.index.tolist() == [[0, 0, 0]] * 3
    assert found.square.tolist() == [[torch.inf] * 3, [4.0, torch.inf, torch.inf], [25.0, torch.inf, torch.inf]]
    assert nearest(table, table, 2, allowed=torch.zeros(3, dtype=torch.bool)).square.isinf().all()


def test_within_is_the_plain_search() -> None:
    references = rows(60, d=3, far=10)
    allowed = torch.rand(60, generator=torch.Generator().manual_seed(2)) < 0.6
    square = plain(references, references, allowed, exclude_self=True)
    found = within(references, references, 1.5, allowed=allowed, exclude_self=True, block=16)
    assert found.index.shape[1] == int((square <= 1.5).sum(1).max())
    for row, (index, distances) in enumerate(zip(found.index, found.square, strict=True)):
        expected = (square[row] <= 1.5).nonzero().squeeze(1)
        assert index[distances.isfinite()].tolist() == expected.tolist()
        torch.testing.assert_close(distances[: len(expected)], square[row, expected], rtol=1e-4, atol=0)
        assert distances[len(expected) :].isinf().all()


def test_empty_balls() -> None:
    table = torch.tensor([[0.0], [1.0], [10.0]])
    found = within(table, table, 1.0, exclude_self=True)
    assert found.square.tolist() == [[1.0], [1.0], [torch.inf]]
    assert within(table, table, 0.5, exclude_self=True).index.shape == (3, 0)
