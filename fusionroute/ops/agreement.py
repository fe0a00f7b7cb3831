"""Where models agree on the next token, and where their disagreement makes a choice informative."""

import torch
from torch import Tensor


def informative(top_choices: Tensor) -> Tensor:
    """S = {t : ∃ i≠j, ŷ_i ≠ ŷ_j}: positions where the experts' top choices are not all the same.

    Args:
        top_choices: token ids ``[..., experts]``.

    Returns:
        bool ``[...]``; always False for a single expert.
    """
    return (top_choices != top_choices[..., :1]).any(-1)


def agreement_matrix(top_choices: Tensor) -> Tensor:
    """Share of positions where experts i and j pick the same token; NaN where there are no positions.

    ``[positions, experts]`` token ids to float ``[experts, experts]``.
    """
    return (top_choices[:, :, None] == top_choices[:, None, :]).float().mean(0)


def decided_by(token: Tensor, router_top: Tensor, expert_top: Tensor) -> Tensor:
    """Who wanted the chosen token most, elementwise: 0 both, 1 the expert alone, 2 the router alone, 3 neither."""
    by_expert, by_router = token == expert_top, token == router_top
    return torch.where(by_expert, torch.where(by_router, 0, 1), torch.where(by_router, 2, 3))
