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


@dataclass
class SFTSums:
    """Sums of Eq. (2) over one batch, so that any grouping of batches gives the same mean."""

    lm: Tensor
    routing: Tensor
    tokens: Tensor
    informative: Tensor

    def loss(
        self, weight: float, tokens: Tensor | int | None = None, informative: Tensor | int | None = None
    ) -> Tensor:
        """L_LM + λ L_expert, each a mean over its own positions; an empty S gives zero, not NaN.

        ``tokens`` and ``informative`` replace this batch's counts, e.g. by those of a whole accumulated step.
        """
        tokens = self.tokens if tokens is None else tokens
        informative = self.informative if informative is None else informative
        return self.lm / _at_least_one(tokens) + weight * self.routing / _at_least_one(informative)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _at_least_one(count: Tensor | int) -> Tensor:
    return torch.as_tensor(count).clamp(min=1)


def sft_sums(
    logits: Tensor, route_logits: Tensor, targets: Tensor, expert_nll: Tensor, is_informative: Tensor
) -> SFTSums:
    """Both parts of Eq. (2) over answer positions.

    Args:
        logits: the router LM's, ``[positions, vocabulary]``.
        route_logits: W h at the same positions, ``[positions, experts]``.
        targets: the known next tokens, ``[positions]``.
        expert_nll: ``[positions, experts]``, no gradient.
        is_informative: bool ``[positions]``, membership in S.
    """
    routing = expected_nll(route_logits, expert_nll)
    return SFTSums(
        lm=target_nll(logits, targets).sum(),
        routing=(routing * is_informative).sum(),
        tokens=torch.tensor(len(targets), device=logits.device),
        informative=is_informative.sum(),
    )
