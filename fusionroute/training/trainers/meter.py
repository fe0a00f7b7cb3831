"""Shares and means over the steps since the last log, and over all processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Sums and counts under names that are fixed, so that every process holds the same ones."""

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self._totals: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, name: str, total: Tensor, count: Tensor | int) -> None:
        assert name in self.names, name
        new = torch.stack([total.detach().double(), torch.as_tensor(count, device=total.device).double()])
        self._totals[name] = self._totals[name] + new if name in self._totals else new

    def means(self, accelerator: Any) -> dict[str, float]:
        """Every name's mean, over all processes; 0 for what was never counted. Starts anew."""
        nothing = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        table = torch.stack([self._totals.get(name, nothing).to(nothing.device) for name in self.names])
        totals = accelerator.reduce(table, reduction="sum").tolist()
        self._totals = {}
        return {name: total / max(count, 1) for name, (total, count) in zip(self.names, totals, strict=True)}
