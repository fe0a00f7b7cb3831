"""What each method's answers cost, next to how good they are."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusionroute.evaluation.report import axis
from fusionroute.evaluation.report.axis import Axis
from fusionroute.evaluation.report.labels import Box, Label, place
from fusionroute.evaluation.report.results import Results, Value, number
from fusionroute.evaluation.report.wording import percent, ratio, seconds

WIDTH, HEIGHT = 880, 460
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 50  # room for what is written along the axes
KEPT = ("weights", "cache")
OWN = "one of its own"  # a single model that no team has: fine-tuned, merged
ZEROS = re.compile(r"\.0+(?=\D|$)")
WIDE = 8.0  # costs that differ more than this many times are drawn on a logarithmic axis


@dataclass(frozen=True)
class CostRow:
    method: str
    kind: str
    average: Value | None
    seconds_per_token: float | None
    reads: tuple[float | None, ...]
    total_reads: float | None
    memory: tuple[float | None, ...]
    total_memory: float | None
    ensembled: float | None
    acceptance: float | None


@dataclass(frozen=True)
class CostTable:
    models: tuple[str, ...]
    memory: tuple[str, ...]
    adds_up: bool  # weights and cache do; what an allocator held at its peak includes both
    rows: tuple[CostRow, ...]
    batch: str
    has_verdicts: bool  # whether any method checks tokens, so that there is E/T and acceptance


@dataclass(frozen=True)
class Point:
    """A method in the plane, in the picture's own units."""

    method: str
    kind: str
    x: float
    y: float
    low: float
    high: float
    said: str
    label: Label


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Scatter:
    """Accuracy over cost. ``frontier`` joins the methods that nothing beats in both."""

    name: str
    caption: str
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    frontier: str
    frame: Box
    width: int = WIDTH
    height: int = HEIGHT


def cost_table(results: Results) -> CostTable | None:
    """Methods in the record's order; None where no cost was measured."""
    costs = {method: results.cost(method) for method in results.methods if results.cost(method)}
    if not costs:
        return None
    reads = {method: cost.get("tokens_read_per_token") or {} for method, cost in costs.items()}
    shared = tuple(dict.fromkeys(name for read in reads.values() if len(read) > 1 for name in read))
    alone = [method for method, read in reads.items() if read and not set(read) <= set(shared)]
    models = (*shared, OWN) if alone else shared
    memory = tuple(dict.fromkeys(name for cost in costs.values() for name in cost.get("peak_memory") or {}))
    batches = sorted({cost["batch"] for cost in costs.values() if cost.get("batch")})
    rows = tuple(_row(results, method, models, memory) for method in costs)
    return CostTable(
        models,
        memory,
        len(memory) > 1 and set(memory) <= set(KEPT),
        rows,
        " or ".join(map(str, batches)),
        any(row.ensembled is not None for row in rows),
    )


def scatters(table: CostTable | None) -> list[Scatter]:
    """Accuracy over time and over tokens read, whichever were measured for two methods or more."""
    if table is None:
        return []
    found = [
        _scatter("Seconds per token", "time per written token", table, lambda row: row.seconds_per_token, seconds),
        _scatter("Tokens read", "tokens read by all models per written token", table, lambda r: r.total_reads, ratio),
    ]
    return [scatter for scatter in found if scatter]


def _row(results: Results, method: str, models: Sequence[str], memory: Sequence[str]) -> CostRow:
    cost = results.cost(method)
    read, held = cost.get("tokens_read_per_token") or {}, cost.get("peak_memory") or {}
    own = [count for model, count in read.items() if model not in models]
    by_model = {**read, OWN: sum(own) if own else None}
    return CostRow(
        method,
        "reference" if method == results.reference else "method",
        results.average(method),
        number(cost.get("seconds_per_token")),
        tuple(number(by_model.get(model)) for model in models),
        sum(read.values()) if read else None,
        tuple(number(held.get(name)) for name in memory),
        sum(held.values()) if held else None,
        number(cost.get("ensembled_per_token")),
        number(cost.get("acceptance")),
    )


def _scatter(
    name: str,
    caption: str,
    table: CostTable,
    cost_of: Callable[[CostRow], float | None],
    word: Callable[[float | None], str],
) -> Scatter | None:
    shown = [(row, cost, row.average) for row in table.rows if (cost := cost_of(row)) and row.average]
    if len(shown) < 2:
        return None
    frame = Box(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    x_axis = _cost_axis([cost for _, cost, _ in shown])
    ends = [end for _, _, value in shown for end in (value.low, value.value, value.high) if end is not None]
    y_axis = axis.linear(ends, within=(0.0, 1.0))

    def across(cost: float) -> float:
        return round(frame.left + x_axis.at(cost) / 100 * (frame.right - frame.left), 1)

    def up(share: float) -> float:
        return round(frame.bottom - y_axis.at(share) / 100 * (frame.bottom - frame.top), 1)

    spots = [(across(cost), up(value.value)) for _, cost, value in shown]
    labels = place([row.method for row, _, _ in shown], spots, frame)
    points = [
        Point(
            row.method,
            row.kind,
            *spot,
            up(value.value if value.low is None else value.low),
            up(value.value if value.high is None else value.high),
            f"{row.method}: {percent(value.value)} %, {word(cost)}",
            label,
        )
        for (row, cost, value), spot, label in zip(shown, spots, labels, strict=True)
    ]
    points.sort(key=lambda point: point.kind == "reference")  # drawn last, above the others
    x_ticks = tuple(Tick(across(tick), ZEROS.sub("", word(tick))) for tick in x_axis.ticks)
    y_ticks = tuple(Tick(up(tick), f"{100 * tick:g}") for tick in y_axis.ticks)
    caption += " (logarithmic)" if x_axis.logarithmic else ""
    return Scatter(name, caption, tuple(points), x_ticks, y_ticks, _frontier(spots), frame)


def _cost_axis(costs: Sequence[float]) -> Axis:
    return axis.logarithmic(costs) if max(costs) / min(costs) > WIDE else axis.linear([0.0, *costs])


def _frontier(spots: Sequence[tuple[float, float]]) -> str:
    """Steps through the points that no other is both cheaper and better than; the picture's y grows downwards."""
    path: list[str] = []
    height = float("inf")
    for x, y in sorted(spots):
        if y < height:
            path += [f"H{x}", f"V{y}"] if path else [f"M{x} {y}"]
            height = y
    return " ".join(path)
