"""A second look at an averaged distribution over strings that is too flat (SAFE, arXiv 2510.15346).

Models that cut text differently spread the mass of one word over its beginnings; sharpening brings it together again.
What comes back is no distribution, only something to take the largest of.
"""

import torch
from torch import Tensor

from fusionroute.config import nearest
from fusionroute.errors import SettingsError

KINDS = ("none", "prefix", "geometric")
SURE = 0.5  # an average that gives this much to one string is left as it is


def sharpen(
    kind: str,
    average: Tensor,
    each: Tensor,
    weights: Tensor,
    ends: Tensor,
    targets: Tensor,
    threshold: float = 0.1,
) -> Tensor:
    """The average, sharpened where it gives no string as much as `SURE`.

    Args:
        kind: a name of `KINDS`.
        average: Σ_v w_v P_v, ``[candidates]``, the candidates in ascending order of their bytes.
        each: P_v, ``[models, candidates]``.
        weights: w, ``[models]``, with sum 1.
        ends, targets, threshold: see `prefix`.

    Returns:
        ``[candidates]``, not normalised.

    Raises:
        SettingsError: see `check_sharpening`.
    """
    check_sharpening(kind, threshold)
    if kind == "prefix":
        return prefix(average, ends, targets, threshold)
    if kind == "none" or is_sure(average):
        return average
    product = geometric(each, weights)
    # no string that every model can write: the product says nothing at all
    return product if bool(product.any()) else average


def check_sharpening(kind: str, threshold: float) -> None:
    """Raise `SettingsError` for an unknown kind or a threshold that is no share of a whole."""
    if kind not in KINDS:
        raise SettingsError(f"sharpening: {nearest(kind, KINDS)}")
    if not 0 < threshold < 1:
        raise SettingsError(f"threshold is a probability between 0 and 1, 0.1 in the paper; got {threshold}")


def prefix(probabilities: Tensor, ends: Tensor, targets: Tensor, threshold: float = 0.1) -> Tensor:
    """P'(t) = P(t) + Σ P(u) over the longer strings u that start with t, for targets t with P(t) > threshold.

    The sums are of what came in, so gains do not cascade, and the longer strings keep what they have.

    Args:
        probabilities: ``[candidates]``, in ascending order of their bytes, no two alike.
        ends: int64 ``[candidates]``; those that start with candidate i are i + 1 to ends[i] - 1.
        targets: bool ``[candidates]``, who may gain.
        threshold: λ.

    Returns:
        ``[candidates]``, not normalised; what came in if one of them has as much as `SURE`.
    """
    if is_sure(probabilities):
        return probabilities
    # float64: a vocabulary's running sum in float32 is off by more than what many a string has
    before = torch.nn.functional.pad(probabilities.double().cumsum(0), (1, 0))
    gain = before[ends] - before[1:]
    return torch.where(targets & (probabilities > threshold), probabilities + gain.to(probabilities), probabilities)


def geometric(each: Tensor, weights: Tensor) -> Tensor:
    """∏_v P_v^{w_v}: ``[models, candidates]`` and ``[models]`` to ``[candidates]``, not normalised.

    What a model excludes stays excluded; a model of weight 0 has no say.
    """
    used = weights > 0
    return torch.tensordot(weights[used].to(each), each[used.to(each.device)].log(), dims=1).exp()


def is_sure(probabilities: Tensor) -> bool:
    return bool(probabilities.amax() >= SURE)
