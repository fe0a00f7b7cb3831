"""Eq. (2) worked by hand, against finite differences, and where no gradient may flow."""

import math

import torch
from torch.autograd import gradcheck

from fusionroute.ops.losses import expected_nll, sft_sums, target_nll


def example() -> dict[str, torch.Tensor]:
    """Two positions, two tokens, two experts; weights (3/4, 1/4) and (1/2, 1/2)."""
    return {
        "logits": torch.tensor([[0.5, 0.5], [0.2, 0.8]]).log(),
        "route_logits": torch.tensor([[math.log(3), 0.0], [1.0, 1.0]]),
        "targets": torch.tensor([0, 0]),
        "expert_nll": torch.tensor([[1.0, 2.0], [0.4, 0.8]]),
        "is_informative": torch.tensor([True, False]),
    }


def test_sft_loss_by_hand() -> None:
    sums = sft_sums(**example())
    lm = math.log(2) + math.log(5)
    routing = 0.75 * 1 + 0.25 * 2
    torch.testing.assert_close(sums.lm, torch.tensor(lm))
    torch.testing.assert_close(sums.routing, torch.tensor(routing))
    torch.testing.assert_close(sums.loss(1 / 3), torch.tensor(lm / 2 + routing / 3))
    torch.testing.assert_close(sums.loss(1 / 3, tokens=8, informative=4), torch.tensor(lm / 8 + routing / 12))


def test_expected_nll_by_hand() -> None:
    torch.testing.assert_close(
        expected_nll(*(example()[k] for k in ("route_logits", "expert_nll"))), torch.tensor([1.25, 0.6])
    )


def test_target_nll_is_the_negative_log_probability() -> None:
    torch.testing.assert_close(target_nll(example()["logits"], torch.tensor([1, 1])), -torch.tensor([0.5, 0.8]).log())


def test_no_informative_position_gives_zero_not_nan() -> None:
    values = example() | {"is_informative": torch.tensor([False, False])}
    values["route_logits"].requires_grad_()
    sums = sft_sums(**values)
    loss = sums.loss(1.0)
    assert sums.routing.item() == 0
    torch.testing.assert_close(loss, sums.lm / 2)
    loss.backward()
    assert not values["route_logits"].grad.any()


def test_gradients_match_finite_differences() -> None:
    torch.manual_seed(0)
    logits, routes = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    targets, mask = torch.tensor([0, 3, 2, 4]), torch.tensor([True, False, True, True])
    nll = torch.rand(4, 5, dtype=torch.float64)

    def loss(logits: torch.Tensor, routes: torch.Tensor) -> torch.Tensor:
        return sft_sums(logits, routes, targets, nll, mask).loss(0.3)

    assert gradcheck(loss, (logits, routes))


def test_uninformative_positions_teach_the_head_nothing_and_experts_get_no_gradient() -> None:
    values = example()
    values["route_logits"].requires_grad_()
    sft_sums(**values).loss(1.0).backward()
    assert values["route_logits"].grad[0].any()
    assert not values["route_logits"].grad[1].any()
    assert not values["expert_nll"].requires_grad
