"""What the router is trained on. Objectives return sums and counts; only the training loop divides."""

from dataclasses import dataclass

import torch
from torch import Tensor


def target_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """−log π(target): ``[positions, vocabulary]`` and ``[positions]`` to float32 ``[positions]``."""
    return torch.nn.functional.cross_entropy(_at_least_float32(logits), targets, reduction="none")


def expected_nll(route_logits: Tensor, expert_nll: Tensor) -> Tensor:
    """−log π_agg(y) = Σ_i w_i NLL_i with w = softmax(W h): the printed aggregate, a weighted sum of log-probabilities.

    Args:
        route_logits: W h, ``[..., experts]``.
        expert_nll: each frozen expert's negative log-probability of the known next token, ``[..., experts]``.
    """
    return (_at_least_float32(route_logits).softmax(-1) * expert_nll).sum(-1)


def renormalised_nll(route_logits: Tensor, expert_log_probs: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(Σ_i w_i log π_i)(y): the same aggregate as a distribution again.

    Args:
        route_logits: W h, ``[positions, experts]``.
        expert_log_probs: of the whole vocabulary, ``[positions, experts, vocabulary]``, no gradient.
        targets: the known next tokens, ``[positions]``.
    """
    weights = _at_least_float32(route_logits).softmax(-1)
    aggregate = torch.einsum("pe,pev->pv", weights, expert_log_probs.to(weights.dtype))
    return torch.nn.functional.cross_entropy(aggregate, targets, reduction="none")


def log_normaliser(router_logits: Tensor, expert_logits: Tensor) -> Tensor:
    """What Eq. (1) lacks to be a distribution: log Z = log Σ_v π_θ(v) π_expert(v).

    ``[..., vocabulary]`` to ``[...]``.
    """
    router, expert = (_at_least_float32(logits).log_softmax(-1) for logits in (router_logits, expert_logits))
    return (router + expert).logsumexp(-1)


def cdpo_logits(
    policy: Tensor, reference: Tensor, expert: Tensor, beta: float, log_normaliser: Tensor | None = None
) -> Tensor:
    """What stands inside the sigmoid of Eq. (3): ℓ_{π_θ} + B, minus the share of log Z in the normalised form.

    Args:
        policy, reference, expert: log-probability of whole answers, ``[pairs, 2]``: the chosen, then the rejected one.
            The expert's is that of the expert the router picked at each token. Only ``policy`` carries a gradient.
        log_normaliser: Σ_t log Z_t of the same answers; None is the printed form, which leaves it out.

    Returns:
        ``[pairs]``.
    """
    answers = policy - reference + expert
    if log_normaliser is not None:
        answers = answers - log_normaliser
    return beta * (answers[:, 0] - answers[:, 1])


def cdpo_loss(logits: Tensor) -> Tensor:
    """−log σ of `cdpo_logits`, per pair: Eq. (3)."""
    return -torch.nn.functional.logsigmoid(logits)


@dataclass
class SFTSums:
    """Sums of Eq. (2) over one batch, so that any grouping of batches gives the same mean."""

    lm: Tensor
    routing: Tensor
    tokens: Tensor
    routed: Tensor

    def loss(self, weight: float, tokens: Tensor | int | None = None, routed: Tensor | int | None = None) -> Tensor:
        """L_LM + λ L_expert, each a mean over its own positions; an empty S gives zero, not NaN.

        ``tokens`` and ``routed`` replace this batch's counts, e.g. by those of a whole accumulated step.
        """
        tokens = self.tokens if tokens is None else tokens
        routed = self.routed if routed is None else routed
        return self.lm / at_least_one(tokens) + weight * self.routing / at_least_one(routed)


def sft_sums(logits: Tensor, targets: Tensor, routing_nll: Tensor) -> SFTSums:
    """Both parts of Eq. (2).

    Args:
        logits: the router LM's at answer positions, ``[positions, vocabulary]``.
        targets: the known next tokens there, ``[positions]``.
        routing_nll: `expected_nll` or `renormalised_nll` at the positions that teach routing (the paper's S).
    """
    return SFTSums(
        lm=target_nll(logits, targets).sum(),
        routing=routing_nll.sum(),
        tokens=torch.tensor(len(targets), device=logits.device),
        routed=torch.tensor(len(routing_nll), device=logits.device),
    )


def at_least_one(count: Tensor | int) -> Tensor:
    """A count to divide by: nothing to count gives zero, not NaN."""
    return torch.as_tensor(count).clamp(min=1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
