"""Descent on routing itself, with the model frozen: the oracle of RoMA (Eq. 1), and what C3PO does to a surrogate loss.

Letters in shapes: n questions, L layers, E experts. Knows nothing of where a loss comes from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionroute.errors import ModelOutputError, SettingsError
from fusionroute.moe.asking import Asked

Loss = Callable[[Tensor], Tensor]  # routing [n, L, E] to the loss of each [n], which depends on its own row alone
Seen = Callable[[Tensor, Tensor], None]  # told of each routing that was tried, and of its losses

ROUNDING = 1e-5  # of the largest gradient in a layer; what is smaller may be a rounding error


@dataclass(frozen=True)
class Descent:
    """How routing is changed; steps, rates and core experts are C3PO's, the optimiser is R2-T2's.

    Attributes:
        steps: gradient steps.
        learning_rate, final: the first rate of a cosine schedule, and the one that it falls towards.
        core: experts per layer that may move, those with the largest initial weights; all, if there are fewer.
    """

    steps: int = 10
    learning_rate: float = 1e-2
    final: float = 1e-5
    core: int = 20

    def __post_init__(self) -> None:
        if self.steps < 0 or self.core < 1 or not 0 <= self.final <= self.learning_rate:
            raise SettingsError(
                "steps are at least 0, core at least 1, and the learning rate falls to final, which is not negative; "
                f"got steps={self.steps}, core={self.core}, learning_rate={self.learning_rate}, final={self.final}"
            )


@torch.inference_mode(False)  # whoever asks may be inside it, where nothing has a gradient
def descend(loss: Loss, routing: Tensor, how: Descent | None = None, seen: Seen | None = None) -> Tensor:
    """The routing after the last step of Adam on the weights themselves.

    Each layer stays a distribution, by our choice so: after every step core experts are clamped at 0 and divided by
    their sum, times what they had together at first. The others do not move. Rows do not influence each other.

    Args:
        loss: see `Loss`; evaluated with gradient, once a step.
        routing: ``[n, L, E]``, each layer a distribution.
        seen: told of every routing before it is left behind, the first before any step; not of the last.

    Raises:
        ModelOutputError: a loss that is not finite, with its row.
    """
    how = how or Descent()
    start = routing.detach().clone()
    core = core_experts(start, how.core)
    weights = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([weights], lr=how.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, how.steps), how.final)
    for _ in range(how.steps):
        with torch.enable_grad():
            losses = _finite(loss(weights))
            (gradient,) = torch.autograd.grad(losses.sum(), weights)
        if seen is not None:
            seen(weights.detach(), losses.detach())
        weights.grad = without_rounding(gradient)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            weights.copy_(as_distribution(weights, start, core))
    return weights.detach()


@torch.inference_mode(False)
def descend_to_lowest(loss: Loss, routing: Tensor, how: Descent | None = None) -> Tensor:
    """As `descend`, but of each row the routing with the lowest loss that was seen, the first and the last among them.

    So no loss rises over that of the start.
    """
    best = routing.detach().clone()
    lowest = best.new_full((len(best),), torch.inf)

    def keep_better(weights: Tensor, losses: Tensor) -> None:
        is_better = losses.to(lowest) < lowest
        best[is_better], lowest[is_better] = weights[is_better], losses.to(lowest)[is_better]

    last = descend(loss, routing, how, keep_better)
    with torch.no_grad():
        keep_better(last, _finite(loss(last)))
    return best


@torch.inference_mode(False)
def oracle_routing(asked: Asked, how: Descent | None = None) -> Tensor:
    """Eq. (1): the routing ``[n, L, E]`` of the last prompt token under which the right answers are likeliest.

    Found by descent from the model's own routing on the true label, so it is no competitor; nor is it a bound on gates
    that are trained, which route every token. Of each question the routing with the lowest loss is kept.
    """
    with torch.no_grad():
        own = asked.say(only_right=True).routing
    return descend_to_lowest(lambda routing: asked.say(routing, only_right=True, grad=True).loss, own, how)


def core_experts(routing: Tensor, count: int) -> Tensor:
    """Which experts may move: per layer those with the ``count`` largest weights, as bool ``[n, L, E]``."""
    index = routing.topk(min(count, routing.shape[-1]), dim=-1).indices
    return torch.zeros_like(routing, dtype=torch.bool).scatter(-1, index, True)


def as_distribution(weights: Tensor, start: Tensor, core: Tensor) -> Tensor:
    """Core experts clamped at 0 and scaled to what they weigh together in ``start``; the others as in ``start``.

    Where nothing is left of a layer's core experts, they too are as in ``start``.
    """
    kept = weights.clamp(min=0) * core
    total = kept.sum(-1, keepdim=True)
    scaled = kept * ((start * core).sum(-1, keepdim=True) / total)
    return torch.where(core & (total > 0), scaled, start)


def without_rounding(gradient: Tensor) -> Tensor:
    """0 where a gradient is nothing beside its layer's largest.

    Adam's steps are of one length however small a gradient is. Where the model scales the chosen weights to sum 1, the
    gradient of the others is 0 up to rounding, which would push them about at random.
    """
    size = gradient.abs()
    return gradient.masked_fill(size < ROUNDING * size.amax(-1, keepdim=True), 0)


def _finite(losses: Tensor) -> Tensor:
    is_finite = losses.isfinite()
    if not bool(is_finite.all()):
        rows = (~is_finite).nonzero().flatten().tolist()
        raise ModelOutputError(
            f"the loss of {len(rows)} of {len(losses)} questions is not finite (the first is number {rows[0]}); "
            "load the model in bfloat16 or float32"
        )
    return losses
