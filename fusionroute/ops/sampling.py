"""From a distribution to a token. Filters follow transformers' order: temperature, top-k, top-p, min-p."""

import numpy as np
import torch
from torch import Tensor

NEVER = float("-inf")


def filter_logits(
    logits: Tensor,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Apply the sampling filters to ``[..., vocabulary]`` logits; excluded tokens become -inf. None = off."""
    if temperature is not None:
        logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    if min_p is not None and min_p > 0:
        logits = keep_min_p(logits, min_p)
    return logits


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Exactly ``k`` tokens stay. A threshold at the k-th value would let ties in."""
    values, tokens = logits.topk(k, dim=-1)
    return torch.full_like(logits, NEVER).scatter(-1, tokens, values)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The smallest set of likeliest tokens whose probability reaches ``p`` stays (never empty)."""
    values, tokens = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = values.softmax(-1)
    likelier = probabilities.cumsum(-1) - probabilities  # mass of the tokens before this one
    return torch.full_like(logits, NEVER).scatter(-1, tokens, values.masked_fill(likelier >= p, NEVER))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least ``p`` times as likely as the likeliest stay."""
    return logits.masked_fill(logits.softmax(-1) < p * logits.softmax(-1).amax(-1, keepdim=True), NEVER)


def uniform(seed: int, position: int, stream: int = 0) -> float:
    """A number in [0, 1) that depends on ``seed``, ``position`` and ``stream`` (one for each use) alone.

    Counter-based (Philox), so a sequence draws the same numbers whoever shares its batch, and draws them again
    after a rollback.
    """
    return float(np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, stream, position])).random())


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens by inverse transform: ``[batch, vocabulary]`` logits and ``[batch]`` numbers in [0, 1) to ``[batch]``."""
    # float64: in float32 the cumulated mass of a large vocabulary is off by more than its rare tokens' share
    mass = logits.double().softmax(-1).cumsum(-1)
    target = uniforms.to(mass) * mass[:, -1]
    # right=True skips tokens of zero probability, whose cumulated mass equals their neighbour's
    return torch.searchsorted(mass, target[:, None], right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
