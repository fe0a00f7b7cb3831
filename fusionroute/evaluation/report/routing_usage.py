"""How often each expert of each layer is chosen, with what weight, and how sure its layer is of its choice."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionroute.moe.pathways.pathways import Pathways

LAYER = re.compile(r"\.(\d+)\.")
NARROW, WIDE = 16, 44  # of a layer's row of experts: pixels an expert, and room for the layer's number
TICKS = (1, 2, 4, 8, 16, 32, 64)
MOST_TICKS = 9


@dataclass(frozen=True)
class Usage:
    """At the last prompt token, over all questions.

    Attributes:
        chosen: share of questions for which an expert is among the top k, ``[L, E]``; a layer's sum to k.
        weight: mean routing weight before top-k, ``[L, E]``; a layer's sum to 1.
        entropy: of one question's routing, mean over questions, in nats, ``[L]``.
        spread: entropy of ``weight``, ``[L]``; far above ``entropy`` where questions go different ways.
    """

    chosen: Tensor
    weight: Tensor
    entropy: Tensor
    spread: Tensor


@dataclass(frozen=True)
class Cell:
    """One expert of one layer. ``shade`` is 0 to 1 of the map's largest."""

    layer: int
    expert: int
    shade: float
    kind: str = "share"  # "more" or "less" in a map of differences


@dataclass(frozen=True)
class Heatmap:
    title: str
    cells: tuple[Cell, ...]
    scale: str  # what the full colour stands for


@dataclass(frozen=True)
class Heatmaps:
    """One measure before, after, and the difference; the first two share one scale."""

    name: str
    note: str
    maps: tuple[Heatmap, ...]


@dataclass(frozen=True)
class LayerRow:
    """``experts`` is how many of them would be as hard to tell, evenly likely: e to the power of the entropy."""

    layer: str
    entropy: tuple[float, float]
    experts: tuple[float, float]
    spread: tuple[float, float]


def usage(pathways: Pathways) -> Usage:
    routing = pathways.routing.double()
    chosen = torch.zeros_like(routing).scatter(2, routing.topk(pathways.settings["top_k"], dim=2).indices, 1.0)
    weight = routing.mean(0)
    return Usage(chosen.mean(0), weight, _entropy(routing).mean(0), _entropy(weight))


def _entropy(routing: Tensor) -> Tensor:
    return -torch.xlogy(routing, routing).sum(-1)


def layer_names(pathways: Pathways) -> list[str]:
    """Numbers of the decoder layers, as the gates are named; counted where no name tells."""
    gates = pathways.settings.get("layers", ())
    found = [match.group(1) for gate in gates if (match := LAYER.search(str(gate)))]
    count = pathways.routing.shape[1]
    return found if len(found) == count else [str(number) for number in range(count)]


def layer_rows(before: Usage, after: Usage, names: Sequence[str]) -> list[LayerRow]:
    return [
        LayerRow(
            name,
            (float(before.entropy[at]), float(after.entropy[at])),
            (float(before.entropy[at].exp()), float(after.entropy[at].exp())),
            (float(before.spread[at]), float(after.spread[at])),
        )
        for at, name in enumerate(names)
    ]


def heatmaps(before: Usage, after: Usage, top_k: int) -> list[Heatmaps]:
    return [
        _heatmaps(
            "Chosen",
            f"Share of the questions for which an expert is among the {top_k} chosen.",
            before.chosen,
            after.chosen,
        ),
        _heatmaps("Weight", "Mean routing weight, over all experts, before the choice.", before.weight, after.weight),
    ]


def _heatmaps(name: str, note: str, before: Tensor, after: Tensor) -> Heatmaps:
    top = float(torch.maximum(before, after).max())
    change = after - before
    most = float(change.abs().max())
    scale, span = f"{100 * top:.3g} %", f"{100 * most:.2g} points" if most else "no difference"
    return Heatmaps(
        name,
        note,
        (
            Heatmap("before", _cells(before / top), scale),
            Heatmap("after", _cells(after / top), scale),
            Heatmap("difference", _cells(change / (most or 1.0), signed=True), span),
        ),
    )


def _cells(shades: Tensor, *, signed: bool = False) -> tuple[Cell, ...]:
    """What would be invisible is left out."""
    return tuple(
        Cell(layer, expert, round(abs(shade), 2), ("more" if shade > 0 else "less") if signed else "share")
        for layer, row in enumerate(shades.tolist())
        for expert, shade in enumerate(row)
        if abs(shade) >= 0.005
    )


def expert_ticks(experts: int) -> list[int]:
    """Numbers of experts that are worth a tick."""
    step = next((step for step in TICKS if experts / step <= MOST_TICKS), TICKS[-1])
    return list(range(0, experts, step))


def least_width(experts: int) -> int:
    """Pixels that a heatmap wants before it shares a line with another."""
    return NARROW * experts + WIDE
