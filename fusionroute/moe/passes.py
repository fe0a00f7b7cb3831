"""Forward passes that leave the model as it was, and what may be kept of them: keys and values of a prefix."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from fusionroute.engine.masks import FULL, layer_kinds


@dataclass(frozen=True)
class Prefix:
    """What was kept of the prompts but their last tokens: keys and values by layer, and the sum of hidden states."""

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor
    total: Tensor

    def cache(self, owner: Tensor) -> DynamicCache:
        """A cache of its own for rows that belong to these questions; growing it leaves what is kept alone."""
        is_each_once = len(owner) == len(self.mask)
        filled = DynamicCache()
        for at, (keys, values) in enumerate(self.layers):
            mine = owner.to(keys.device)
            pair = (keys, values) if is_each_once else (keys[mine], values[mine])
            filled.update(*pair, at)
        return filled


def has_plain_cache(model: Any) -> bool:
    """Full attention in every layer: no window or chunk that padding would shift, no state that cannot be shared."""
    config = model.config.get_text_config()
    kinds = layer_kinds(config) or {FULL}
    windows = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    return kinds == {FULL} and not windows and not getattr(model, "_is_stateful", False)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """No dropout, and no weight takes a gradient: whoever asks changes the routing, never the model."""
    training = [module for module in model.modules() if module.training]
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    model.eval()
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for weight in learning:
            weight.requires_grad_(True)


@contextmanager
def states_of(model: Any) -> Iterator[list[Tensor]]:
    """The last hidden states ``[R, W, hidden]`` of passes inside the block."""
    states: list[Tensor] = []
    handle = model.get_decoder().register_forward_hook(lambda _module, _inputs, output: states.append(output[0]))
    try:
        yield states
    finally:
        handle.remove()


def sum_over(states: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens of a mask ``[R, W]``, ``[R, hidden]``; whatever padding holds is left out, NaN too."""
    wide = states if states.dtype == torch.float64 else states.float()
    return wide.masked_fill(~mask.bool().to(wide.device)[..., None], 0).sum(1).to(mask.device)
