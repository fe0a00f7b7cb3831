"""Attention masks for rows of different lengths, one per kind of layer that the model has."""

from typing import Any

import torch
from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_kinds(config: Any) -> set[str] | None:
    """The kinds in a model's ``layer_types``, or None for a model that takes one mask for all layers."""
    kinds = getattr(config, "layer_types", None)
    return set(kinds) if kinds else None


def ragged_masks(config: Any, positions: Tensor, longest: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Additive ``[B, 1, T, L]`` masks in the form the model expects: a dict by layer kind, or one tensor.

    Additive because eager attention (Gemma-2's soft-capping needs it) adds what it gets. Padded queries see
    position 0, so no softmax is empty; what they compute is not kept.

    Args:
        positions: of every query, ``[B, T]``; padding clamped to 0.
        longest: L, the number of cached positions that any row may attend to.
    """
    window = getattr(config, "sliding_window", None)
    kinds = layer_kinds(config)
    if kinds is None:
        return _additive(_allowed(positions, longest, window), dtype)
    return {kind: _additive(_allowed(positions, longest, window if kind == SLIDING else None), dtype) for kind in kinds}


def _allowed(positions: Tensor, longest: int, window: int | None) -> Tensor:
    keys = torch.arange(longest, device=positions.device)
    allowed = keys <= positions[:, :, None]
    return allowed if window is None else allowed & (keys > positions[:, :, None] - window)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]
