"""The average of several next-token distributions over one vocabulary."""

import torch
from torch import Tensor

from fusionroute.config import nearest
from fusionroute.errors import SettingsError

SPACES = ("probabilities", "log_probabilities")


def average(log_probs: Tensor, weights: Tensor, space: str = "probabilities") -> Tensor:
    """Σ_v w_v P_v, or the normalised exp Σ_v w_v log P_v, as log-probabilities.

    Args:
        log_probs: log P_v, normalised, ``[models, ..., vocabulary]``.
        weights: w, non-negative with sum 1, ``[models]``; a model of weight 0 has no say, whatever it says.
        space: a name of `SPACES`.

    Returns:
        normalised float32 (float64 for float64) ``[..., vocabulary]``.

    Raises:
        SettingsError: another space.
    """
    if space not in SPACES:
        raise SettingsError(f"space: {nearest(space, SPACES)}")
    used = weights > 0
    log_probs = log_probs[used.to(log_probs.device)]
    if log_probs.dtype != torch.float64:
        log_probs = log_probs.float()
    if space == "probabilities":
        return contributions(log_probs, weights[used]).logsumexp(0)
    return torch.tensordot(weights[used].to(log_probs), log_probs, dims=1).log_softmax(-1)


def contributions(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Log w_v P_v: what each model adds to the average of probabilities; shape of ``log_probs``."""
    shape = (-1, *[1] * (log_probs.dim() - 1))
    return log_probs + weights.to(log_probs).log().view(shape)


def normalised_weights(weights: list[float]) -> list[float]:
    """Scaled to sum 1. Raises `SettingsError` for weights that are negative, no numbers, or all 0."""
    total = sum(weights)
    if any(not 0 <= weight < float("inf") for weight in weights) or not 0 < total < float("inf"):
        raise SettingsError(f"weights are 0 or more, at least one of them above 0; got {list(weights)}")
    return [weight / total for weight in weights]
