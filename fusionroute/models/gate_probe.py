"""Which modules of a model are its gates, and how each turns scores into weights: measured, not looked up by name.

A gate is the router module of a mixture-of-experts (MoE) layer. Letters in shapes: T tokens, E experts, k chosen ones.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from fusionroute.errors import UnsupportedModelError

ROWS = 64  # random hidden states that a gate is asked about
SPREAD = 2.0  # standard deviation of the logits they give, so that experts differ clearly and none gets everything


@dataclass(frozen=True)
class Scoring:
    """How a gate weighs experts: softmax over all of them, the ``top_k`` largest, divided by their sum or not, scaled.

    Attributes:
        renormalises: the chosen weights are divided by their sum.
        scale: what they are multiplied by, after that.
        in_order: the largest comes first; if not, the order is that of torch's unsorted top-k.
    """

    top_k: int
    renormalises: bool
    scale: float
    in_order: bool

    def __call__(self, routing: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and indices ``[T, k]`` of the chosen experts, from probabilities of all, ``[T, E]``."""
        weights, index = routing.topk(self.top_k, dim=-1, sorted=self.in_order)
        if self.renormalises:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * self.scale, index


@dataclass(frozen=True)
class Gate:
    """The router module of one MoE layer.

    Attributes:
        name: dotted path in the model, ``"model.layers.3.mlp.gate"``.
        module: its forward returns logits ``[T, E]``, and weights and indices ``[T, k]`` of the chosen experts.
        layer: decoder layer that it stands in; "the last five" counts gates, not decoder layers.
        experts: E.
        scoring: how it gets from logits to weights.
    """

    name: str
    module: nn.Module
    layer: int
    experts: int
    scoring: Scoring

    @property
    def weight(self) -> nn.Parameter:
        """The only tensor of the module, ``[E, hidden]``."""
        return next(self.module.parameters())


class _Unlike(Exception):
    """Why a module is no gate of the kind that we know."""


def find_gates(model: nn.Module) -> list[Gate]:
    """All gates of ``model``, the first layer's first.

    A module is taken for a gate if it stands beside the experts, holds one weight ``[E, hidden]`` and nothing else, and
    answers random hidden states exactly as softmax, top-k, division by the sum (or none) and a constant scale would.

    Raises:
        UnsupportedModelError: a dense model, weights that are not loaded, or a gate that scores in another way
            (sigmoids, a bias, softmax after top-k, a choice limited to groups), with what was different.
    """
    gates = [
        _gate_of(model, name, block, experts)
        for name, block in model.named_modules()
        if (experts := _expert_counts(block))
    ]
    if not gates:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no mixture-of-experts layer: none of its modules holds experts beside a gate; "
            "give an MoE model, such as OLMoE, Qwen3-MoE, DeepSeek-V2 or Mixtral"
        )
    return gates


def _expert_counts(block: nn.Module) -> set[int]:
    """How many experts the children of ``block`` hold; empty if none of them holds experts."""
    counts = {_number_of_experts(name, child) for name, child in block.named_children()}
    return counts - {0}


def _number_of_experts(name: str, module: nn.Module) -> int:
    """Experts are a list of modules, or parameters ``[E, rows, columns]``; 0 for anything else."""
    if isinstance(module, nn.ModuleList):
        return len(module) if "expert" in name and len(module) > 1 else 0
    if isinstance(module, _ConvNd):
        return 0
    fused = [len(weight) for weight in module.parameters(recurse=False) if weight.ndim == 3 and len(weight) > 1]
    return fused[0] if fused else 0


def _gate_of(model: nn.Module, block_name: str, block: nn.Module, experts: set[int]) -> Gate:
    reasons = []
    for child_name, child in block.named_children():
        if _number_of_experts(child_name, child) or not _has_row_per_expert(child, experts):
            continue
        name = f"{block_name}.{child_name}".removeprefix(".")
        try:
            scoring, count = _measure(child)
        except _Unlike as reason:
            reasons.append(f"its gate {name} ({type(child).__name__}) {reason}")
        else:
            return Gate(name, child, _layer(name), count, scoring)
    raise UnsupportedModelError(
        f"the routing of {type(model).__name__} can be neither read nor overridden: "
        f"{reasons[0] if reasons else f'no gate stands beside the experts in {block_name}'}; known are gates that take "
        "the softmax over all experts and then the top-k (OLMoE, Qwen3-MoE, greedy DeepSeek-V2, Mixtral and their like)"
    )


def _has_row_per_expert(module: nn.Module, experts: set[int]) -> bool:
    return any(weight.ndim == 2 and len(weight) in experts for weight in module.parameters())


def _layer(name: str) -> int:
    """The last number in a dotted path: decoder layers are numbered, and gates stand one to a layer."""
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    return numbers[-1] if numbers else 0


def _measure(gate: nn.Module) -> tuple[Scoring, int]:
    """How ``gate`` scores, and the number of its experts. Raises `_Unlike`."""
    name, weight = _only_weight(gate)
    whole = weight.detach().float()  # asked in float32, where rounding hides no difference
    spread = whole.norm(dim=1).mean()
    if not bool(spread.isfinite() and spread > 0):
        raise _Unlike("has weights that are zero or no finite numbers: is the model loaded and trained?")
    hidden = torch.randn(ROWS, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.device)
    try:
        with torch.no_grad(), _evaluating(gate):
            output = functional_call(gate, {name: whole}, (SPREAD / spread * hidden,))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        raise _Unlike(f"cannot be asked by itself ({type(error).__name__}: {error})") from error
    logits, weights, index = _checked(output, len(weight))
    return _scoring(gate, logits.float(), weights.float(), index), len(weight)


def _only_weight(gate: nn.Module) -> tuple[str, Tensor]:
    state = {**dict(gate.named_parameters()), **dict(gate.named_buffers())}
    matrices = [name for name, tensor in state.items() if tensor.ndim == 2]
    others = sorted(state.keys() - matrices[:1])
    if others:
        raise _Unlike(f"holds {', '.join(others)} beside its weight: a bias or scale takes part in its choice")
    name = matrices[0]
    if state[name].is_meta:
        raise _Unlike("has its weights on the meta device or offloaded; load the whole model first")
    if not state[name].is_floating_point():
        raise _Unlike(f"has weights of type {state[name].dtype}; load the model without quantisation of its gates")
    return name, state[name]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Some gates add noise in training."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _checked(output: Any, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    is_triple = isinstance(output, tuple) and len(output) == 3 and all(isinstance(part, Tensor) for part in output)
    if not is_triple:
        raise _Unlike("does not return logits, weights and indices")
    logits, weights, index = output
    if (
        logits.shape != (ROWS, experts)
        or weights.shape != index.shape
        or index.shape[:1] != (ROWS,)
        or index.ndim != 2
        or not 1 <= index.shape[1] <= experts
        or index.is_floating_point()
    ):
        shapes = ", ".join(str(list(part.shape)) for part in output)
        raise _Unlike(f"returns {shapes} instead of logits [T, E], weights [T, k] and indices [T, k]")
    return logits, weights, index


def _scoring(gate: nn.Module, logits: Tensor, weights: Tensor, index: Tensor) -> Scoring:
    routing = logits.softmax(-1)
    top_k = index.shape[1]
    chosen = routing.gather(1, index)
    if not torch.equal(chosen.sort(descending=True).values, routing.topk(top_k).values):
        raise _Unlike("chooses other experts than the k most probable: its choice is limited to groups, or biased")
    for renormalises in (False, True):
        unscaled = chosen / chosen.sum(-1, keepdim=True) if renormalises else chosen
        for scale in _likely_scales(gate, weights / unscaled):
            for in_order in (True, False):
                scoring = Scoring(top_k, renormalises, scale, in_order)
                mine, places = scoring(routing)
                if torch.equal(places, index) and torch.equal(mine, weights):
                    return scoring
    raise _Unlike(_difference(logits, routing, weights, chosen, index))


def _likely_scales(gate: nn.Module, ratios: Tensor) -> list[float]:
    """The constant that a gate multiplies by, to the last bit: 1, a number that it holds, or one that was rounded."""
    ratio = float(ratios.median())
    held = [float(value) for value in vars(gate).values() if isinstance(value, (int, float))]
    return [value for value in (1.0, *held, float(f"{ratio:.6g}")) if math.isclose(value, ratio, rel_tol=1e-5)]


def _difference(logits: Tensor, routing: Tensor, weights: Tensor, chosen: Tensor, index: Tensor) -> str:
    """In words: how weights were made that are not made as `Scoring` says."""
    sigmoid = logits.sigmoid().gather(1, index)
    after = logits.gather(1, index).softmax(-1)
    if _is_multiple(weights, after):
        return "takes the softmax after the top-k, over the chosen experts alone"
    if _is_multiple(weights, sigmoid) or _is_multiple(weights, sigmoid / sigmoid.sum(-1, keepdim=True)):
        return "scores experts with sigmoids, not with a softmax"
    if torch.allclose(logits.sum(-1), torch.ones(len(logits), device=logits.device), atol=1e-4):
        return "returns probabilities where logits were expected"
    error = float((weights - chosen).abs().max())
    return f"does not weigh experts by softmax, then top-k (weights differ by up to {error:.2g})"


def _is_multiple(one: Tensor, other: Tensor) -> bool:
    ratios = one / other
    return bool(torch.allclose(ratios, ratios.median().expand_as(ratios), rtol=1e-3))
