"""Eqs. (2) and (3) worked by hand, against finite differences, and where no gradient may flow."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from fusionroute.ops.losses import (
    cdpo_logits,
    cdpo_loss,
    expected_nll,
    log_normaliser,
    renormalised_nll,
    sft_sums,
    target_nll,
)

# Two positions, two tokens, two experts; weights (3/4, 1/4) and (1/2, 1/2).
LOGITS = torch.tensor([[0.5, 0.5], [0.2, 0.8]]).log()
ROUTES = torch.tensor([[math.log(3), 0.0], [1.0, 1.0]])
TARGETS = torch.tensor([0, 0])
EXPERTS = torch.tensor([[[0.4, 0.6], [0.9, 0.1]], [[0.5, 0.5], [0.5, 0.5]]]).log()  # position, expert, token


def test_sft_loss_by_hand() -> None:
    routing = expected_nll(ROUTES, torch.tensor([[1.0, 2.0], [0.4, 0.8]]))
    torch.testing.assert_close(routing, torch.tensor([1.25, 0.6]))
    sums = sft_sums(LOGITS, TARGETS, routing[:1])
    lm = math.log(2) + math.log(5)
    torch.testing.assert_close(sums.lm, torch.tensor(lm))
    torch.testing.assert_close(sums.routing, torch.tensor(1.25))
    torch.testing.assert_close(sums.loss(1 / 3), torch.tensor(lm / 2 + 1.25 / 3))
    torch.testing.assert_close(sums.loss(1 / 3, tokens=8, routed=4), torch.tensor(lm / 8 + 1.25 / 12))


def test_renormalised_nll_by_hand() -> None:
    # position 0: the aggregate is 0.4^¾ 0.9^¼ against 0.6^¾ 0.1^¼; position 1: two equal coins stay a coin
    right, wrong = 0.4**0.75 * 0.9**0.25, 0.6**0.75 * 0.1**0.25
    expected = torch.tensor([-math.log(right / (right + wrong)), math.log(2)])
    torch.testing.assert_close(renormalised_nll(ROUTES, EXPERTS, TARGETS), expected)


def test_renormalising_only_removes_the_aggregate_s_missing_mass() -> None:
    expert_nll = -EXPERTS[..., 0]
    aggregate = torch.einsum("pe,pev->pv", ROUTES.softmax(-1), EXPERTS)
    missing = aggregate.logsumexp(-1)
    torch.testing.assert_close(renormalised_nll(ROUTES, EXPERTS, TARGETS), expected_nll(ROUTES, expert_nll) + missing)


def test_target_nll_is_the_negative_log_probability() -> None:
    torch.testing.assert_close(target_nll(LOGITS, torch.tensor([1, 1])), -torch.tensor([0.5, 0.8]).log())


def test_log_normaliser_by_hand() -> None:
    expert = torch.tensor([[0.4, 0.6], [0.25, 0.75]]).log()
    expected = torch.tensor([0.5 * 0.4 + 0.5 * 0.6, 0.2 * 0.25 + 0.8 * 0.75]).log()
    torch.testing.assert_close(log_normaliser(LOGITS + 3, expert - 5), expected)  # raw logits: constants do not matter


def test_cdpo_by_hand() -> None:
    policy, reference, expert = (torch.tensor([pair]) for pair in ([-1.0, -4.0], [-2.0, -3.0], [-5.0, -1.0]))
    # ℓ = 0.1 ((−1 + 2) − (−4 + 3)) = 0.2; B = 0.1 (−5 + 1) = −0.4
    printed = cdpo_logits(policy, reference, expert, 0.1)
    torch.testing.assert_close(printed, torch.tensor([-0.2]))
    torch.testing.assert_close(cdpo_loss(printed), torch.tensor([math.log(1 + math.exp(0.2))]))
    # log Z of −3 for the chosen answer and −0.5 for the rejected one: −0.1 (−3 + 0.5) more
    normalised = cdpo_logits(policy, reference, expert, 0.1, torch.tensor([[-3.0, -0.5]]))
    torch.testing.assert_close(normalised, torch.tensor([0.05]))


def test_without_an_expert_cdpo_is_dpo() -> None:
    policy, reference = torch.randn(5, 2), torch.randn(5, 2)
    expected = 0.3 * ((policy - reference)[:, 0] - (policy - reference)[:, 1])
    torch.testing.assert_close(cdpo_logits(policy, reference, torch.zeros(5, 2), 0.3), expected)


@pytest.mark.parametrize("saturation", [0.0, 200.0])
def test_the_gradient_is_weighed_by_how_wrong_the_pair_is(saturation: float) -> None:
    """−β σ(−(ℓ + B)) on the chosen answer, the opposite on the rejected one (spec, section 6)."""
    policy = torch.tensor([[-1.0, -4.0]], requires_grad=True)
    logits = cdpo_logits(policy, torch.zeros(1, 2), torch.tensor([[saturation, 0.0]]), 0.1)
    cdpo_loss(logits).sum().backward()
    weight = 0.1 * (-logits.detach()).sigmoid()
    torch.testing.assert_close(policy.grad, torch.stack([-weight, weight], dim=-1))


def test_no_informative_position_gives_zero_not_nan() -> None:
    routes = ROUTES.clone().requires_grad_()
    nowhere = torch.tensor([False, False])
    sums = sft_sums(LOGITS, TARGETS, expected_nll(routes[nowhere], torch.ones(2, 2)[nowhere]))
    loss = sums.loss(1.0)
    assert sums.routing.item() == 0
    torch.testing.assert_close(loss, sums.lm / 2)
    loss.backward()
    assert routes.grad is not None
    assert not routes.grad.any()


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_sft_gradients_match_finite_differences() -> None:
    torch.manual_seed(0)
    targets, nll = torch.tensor([0, 3, 2, 4]), torch.rand(4, 3, dtype=torch.float64)
    log_probs = double(4, 3, 5).detach().log_softmax(-1)

    def expected(logits: Tensor, routes: Tensor) -> Tensor:
        return sft_sums(logits, targets, expected_nll(routes, nll)).loss(0.3)

    def renormalised(logits: Tensor, routes: Tensor) -> Tensor:
        return sft_sums(logits, targets, renormalised_nll(routes, log_probs, targets)).loss(0.3)

    assert gradcheck(expected, (double(4, 5), double(4, 3)))
    assert gradcheck(renormalised, (double(4, 5), double(4, 3)))


@pytest.mark.parametrize("form", ["printed", "normalised"])
def test_cdpo_gradients_match_finite_differences(form: str) -> None:
    """From the router's logits at each of six tokens (three per answer) to the loss of one pair."""
    torch.manual_seed(1)
    targets, expert_logits = torch.tensor([0, 3, 2, 4, 1, 1]), double(6, 5).detach()
    reference = double(1, 2).detach()

    def loss(logits: Tensor) -> Tensor:
        policy = -target_nll(logits, targets).view(1, 2, 3).sum(-1)
        expert = -target_nll(expert_logits, targets).view(1, 2, 3).sum(-1)
        normaliser = log_normaliser(logits, expert_logits).view(1, 2, 3).sum(-1) if form == "normalised" else None
        return cdpo_loss(cdpo_logits(policy, reference, expert, 0.5, normaliser)).sum()

    assert gradcheck(loss, (double(6, 5),))
