"""AdamW for weights that live in half precision: small steps add up in float32 instead of being rounded away."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class MasterAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` on float32 copies of ``parameters``, which get the rounded result of each step.

    The parameters themselves keep their dtype, as a gate in a bfloat16 model must. The copies are part of the state, so
    a resumed run goes on from what was not yet visible after rounding.

    Args:
        options: of `torch.optim.AdamW`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], **options: Any):
        self.live = list(parameters)
        self.masters = [nn.Parameter(weight.detach().float().clone()) for weight in self.live]
        super().__init__(self.masters, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for weight, master in zip(self.live, self.masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
        result = super().step(closure)
        for weight, master in zip(self.live, self.masters, strict=True):
            weight.copy_(master)
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for weight in self.live:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "masters": [master.detach().clone() for master in self.masters]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        masters: list[Tensor] = state.pop("masters")
        super().load_state_dict(state)
        for master, saved in zip(self.masters, masters, strict=True):
            master.copy_(saved)
