"""Descent on routing: worked by hand on a quadratic, and what may move."""

import pytest
import torch
from torch import Tensor

from fusionroute.errors import ModelOutputError, SettingsError
from fusionroute.moe.optimise import (
    Descent,
    as_distribution,
    core_experts,
    descend,
    descend_to_lowest,
    without_rounding,
)


def random_routing(n: int = 5, layers: int = 2, experts: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, layers, experts, generator=generator)).softmax(-1)


def towards(target: Tensor):
    return lambda routing: (routing - target).square().sum((-2, -1))


def test_a_first_step_worked_by_hand() -> None:
    """Adam's first step has the length of the learning rate, against the gradient's sign: here (+, -, +, 0)."""
    start = torch.tensor([[[0.4, 0.3, 0.2, 0.1]]])
    target = torch.tensor([[[0.1, 0.6, 0.0, 0.1]]])
    found = descend(towards(target), start, Descent(steps=1, learning_rate=0.1))
    moved = torch.tensor([0.3, 0.4, 0.1, 0.1])
    torch.testing.assert_close(found[0, 0], moved / moved.sum(), atol=1e-6, rtol=0)


def test_the_second_step_has_half_the_rate_and_remembers_the_first() -> None:
    """Two steps of Adam and the schedule in plain arithmetic, on one layer of two experts with opposite gradients."""
    start, target = torch.tensor([[[0.5, 0.5]]], dtype=torch.float64), torch.tensor([[[1.0, 0.0]]]).double()
    rate, final = 0.1, 0.02
    weight, first, second = 0.5, 0.0, 0.0
    for step, at in ((1, rate), (2, final + (rate - final) / 2)):  # cosine: half way down after one of two steps
        gradient = 2 * (weight - 1)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        length = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
        weight -= at * length  # the other expert loses as much, so the sum stays 1
    found = descend(towards(target), start, Descent(steps=2, learning_rate=rate, final=final))
    torch.testing.assert_close(found[0, 0], torch.tensor([weight, 1 - weight], dtype=torch.float64), atol=1e-7, rtol=0)


def test_many_steps_find_the_minimum() -> None:
    start, target = random_routing(seed=1), random_routing(seed=2)
    found = descend(towards(target), start, Descent(steps=400, learning_rate=0.02))
    torch.testing.assert_close(found, target, atol=2e-3, rtol=0)


def test_routing_stays_a_distribution() -> None:
    start = random_routing()
    tried = []
    away = torch.zeros_like(start)
    away[..., 0] = 3  # far outside, so that weights are pushed below 0
    found = descend(
        towards(away), start, Descent(steps=30, learning_rate=0.2), lambda weights, _: tried.append(weights.clone())
    )
    for routing in (*tried, found):
        assert bool((routing >= 0).all())
        torch.testing.assert_close(routing.sum(-1), torch.ones(routing.shape[:2]))
    assert bool((found == 0).any()), "some weight must have met the wall"
    assert len(tried) == 30
    torch.testing.assert_close(tried[0], start, atol=0, rtol=0)


def test_inert_experts_do_not_move() -> None:
    start, target = random_routing(experts=16), random_routing(experts=16, seed=3)
    found = descend(towards(target), start, Descent(steps=25, learning_rate=0.05, core=5))
    core = core_experts(start, 5)
    assert core.sum(-1).unique().tolist() == [5]
    assert bool((start.masked_fill(~core, 2).amin(-1) >= start.masked_fill(core, -1).amax(-1)).all())
    assert torch.equal(found[~core], start[~core])
    assert bool((found[core] != start[core]).float().mean() > 0.9)
    torch.testing.assert_close(found.sum(-1), torch.ones(start.shape[:2]))


def test_fewer_experts_than_the_core_all_move() -> None:
    start = random_routing()
    assert bool(core_experts(start, 20).all())


def test_rows_do_not_influence_each_other() -> None:
    start, target = random_routing(seed=4), random_routing(seed=5)
    together = descend(towards(target), start)
    for row in range(len(start)):
        alone = descend(towards(target[row : row + 1]), start[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_the_lowest_loss_is_kept_for_each_row() -> None:
    """Steps so long that most routings come out worse than they began."""
    start = random_routing(seed=6)
    target = start.roll(1, -1) * 0.1 + start * 0.9  # close by
    loss, losses = towards(target), []
    how = Descent(steps=7, learning_rate=0.3)
    last = descend(loss, start, how, lambda _, each: losses.append(each))
    losses.append(loss(last))
    best = descend_to_lowest(loss, start, how)
    torch.testing.assert_close(loss(best), torch.stack(losses).amin(0))
    assert bool((loss(best) <= loss(start)).all())
    assert bool((loss(last) > loss(start)).any()), "else there was nothing to guard against"


def test_no_steps_change_nothing() -> None:
    start = random_routing()
    assert torch.equal(descend(towards(random_routing(seed=1)), start, Descent(steps=0)), start)
    assert torch.equal(descend_to_lowest(towards(start), start, Descent(steps=0)), start)


def test_a_layer_whose_core_was_pushed_out_altogether_begins_again() -> None:
    start = torch.tensor([[[0.6, 0.3, 0.1], [0.5, 0.3, 0.2]]])
    core = core_experts(start, 2)
    weights = torch.tensor([[[-1.0, -2.0, 0.1], [0.2, 0.2, 0.2]]])
    wanted = torch.tensor([[[0.6, 0.3, 0.1], [0.4, 0.4, 0.2]]])
    torch.testing.assert_close(as_distribution(weights, start, core), wanted)


def test_rounding_errors_are_no_direction() -> None:
    gradient = torch.tensor([[[1.0, -2e-7, 2e-4, 0.0], [1e-9, -3e-9, 0.0, 0.0]]])
    wanted = torch.tensor([[[1.0, 0.0, 2e-4, 0.0], [1e-9, -3e-9, 0.0, 0.0]]])
    assert torch.equal(without_rounding(gradient), wanted)


def test_a_loss_that_is_not_finite_is_refused_with_its_row() -> None:
    start = random_routing(n=3)
    broken = torch.tensor([1.0, torch.nan, 1.0])
    with pytest.raises(ModelOutputError, match=r"1 of 3 questions is not finite \(the first is number 1\)"):
        descend(lambda routing: routing.sum((-2, -1)) * broken, start)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"core": 0}, {"final": 1.0}, {"learning_rate": -1e-2}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="steps are at least 0"):
        Descent(**wrong)
