"""Eqs. (5) to (7) worked by hand, their gradient by finite differences, and alignment of spaces on known cases."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from fusionroute.ops.manifold import cka, edge_weights, manifold_loss, neighbour_overlap, similarity

# Two questions, two layers of two experts, two neighbours each.
ROUTING = torch.tensor([[0.5, 0.5, 0.25, 0.75], [1.0, 0.0, 0.0, 1.0]])
TARGETS = torch.tensor([[[1.0, 0.0, 0.25, 0.75], [0.5, 0.5, 0.75, 0.25]], [[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]]])


def test_similarity_and_edge_weights_by_hand() -> None:
    # sigma 2: exp(-0/8), exp(-8 ln 3/8), exp(-8 ln 9/8) = 1, 1/3, 1/9; of 13/9 they are 9/13, 3/13, 1/13
    near = similarity(torch.tensor([0.0, 8 * math.log(3), 8 * math.log(9)]), 2.0)
    torch.testing.assert_close(near, torch.tensor([1.0, 1 / 3, 1 / 9]))
    torch.testing.assert_close(edge_weights(near), torch.tensor([9.0, 3.0, 1.0]) / 13)


def test_an_absent_neighbour_weighs_nothing_and_an_empty_neighbourhood_is_0_not_nan() -> None:
    near = similarity(torch.tensor([[0.0, torch.inf], [torch.inf, torch.inf]]), 1.0)
    assert edge_weights(near).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_the_loss_by_hand() -> None:
    # question 0: |r - r_0|² = .25 + .25 = .5 and so is |r - r_1|²; question 1: 4 (all wrong in two layers) and 0
    loss = manifold_loss(ROUTING, TARGETS, torch.tensor([[0.75, 0.25], [0.125, 0.875]]))
    torch.testing.assert_close(loss, torch.tensor([0.5, 0.5]))
    assert manifold_loss(ROUTING, TARGETS, torch.tensor([[1.0, 0.0], [1.0, 0.0]])).tolist() == [0.5, 4.0]


def test_layers_are_summed_and_empty_neighbourhoods_cost_nothing() -> None:
    weights = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    halves = [manifold_loss(ROUTING[:, part], TARGETS[..., part], weights) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(halves), manifold_loss(ROUTING, TARGETS, weights))
    assert manifold_loss(ROUTING, TARGETS, weights)[1] == 0


def test_the_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(3, 5, 2, 4, dtype=torch.float64).softmax(-1).flatten(2)
    weights = torch.rand(3, 5, dtype=torch.float64)
    weights[1] = 0
    assert gradcheck(lambda logits: manifold_loss(logits.softmax(-1).flatten(1), targets, weights), (logits,))
    manifold_loss(logits.softmax(-1).flatten(1), targets, weights).sum().backward()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0] != 0).all()


def test_cka_by_hand() -> None:
    # R = (0, 1, 2) on a line, centred (-1, 0, 1): HAH = rrᵀ with r = (-1, 0, 1), so tr(AHAH) = (rᵀr)² = 4.
    # B holds the similarities of (0, 0, 1), centred s = (-1, -1, 2)/3: tr(BHBH) = (6/9)² = 4/9.
    # tr(AHBH) = (rᵀs)² = (1/3 + 2/3)² = 1, so CKA = 1 / √(4 · 4/9) = 3/4.
    line, corner = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [0.0], [1.0]])
    torch.testing.assert_close(cka(line @ line.T, corner @ corner.T), torch.tensor(0.75, dtype=torch.float64))


def test_cka_is_1_of_a_space_and_itself_rotated_moved_or_scaled_and_less_of_another() -> None:
    torch.manual_seed(0)
    rows = torch.randn(40, 6, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    same = rows @ rows.T
    for other in (rows, rows @ rotation, rows + 3, 0.1 * rows):
        assert float(cka(same, other @ other.T)) == pytest.approx(1, abs=1e-12)
    stranger = torch.randn(40, 6, dtype=torch.float64)
    assert 0 < float(cka(same, stranger @ stranger.T)) < 0.4


def test_cka_of_rows_that_are_all_alike_is_no_number() -> None:
    assert cka(torch.ones(3, 3), torch.eye(3)).isnan()


def test_shared_neighbours_by_hand() -> None:
    x, y = torch.tensor([[0.0], [1.0], [3.0], [6.0]]), torch.tensor([[0.0], [5.0], [6.0], [-2.0]])
    # nearest in x: 1, 0, 1, 2; in y: 3, 2, 1, 0. Only question 2 has the same one
    assert float(neighbour_overlap(x, y, 1)) == 0.25
    assert float(neighbour_overlap(x, y, 3)) == 1
    assert float(neighbour_overlap(x, 7 - x, 2)) == 1
