"""Tables of methods and tasks."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from rich import box
from rich.style import Style
from rich.table import Table
from rich.text import Text

BEST = Style(bold=True, color="#009e73")


class Estimated(Protocol):
    """A value with its interval; read-only, so that frozen dataclasses fit."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def comparison_table(
    rows: Mapping[str, Mapping[str, Estimated | None]],
    *,
    title: str = "",
    caption: str = "",
    bounds: Collection[str] = (),
) -> Table:
    """Methods down, tasks across: percent, below it the interval, the best of each column highlighted.

    Args:
        rows: None where there is no result.
        bounds: rows that are no method, such as an oracle, and stand out of the contest.
    """
    columns = list(next(iter(rows.values())))
    contest = [row for name, row in rows.items() if name not in bounds]
    best = {column: _best([each.value for row in contest if (each := row[column]) is not None]) for column in columns}
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.padding, table.pad_edge = (0, 1, 0, 0), False  # 80 columns are to hold eight tasks and their intervals
    table.add_column("", no_wrap=True)
    for column in columns:
        # a long name on two lines leaves room for all tasks side by side
        table.add_column(column.replace("_", "\n", 1).replace("_", " "), justify="right")
    for method, row in rows.items():
        is_bound = method in bounds
        cells = [_cell(row[column], None if is_bound else best[column]) for column in columns]
        table.add_row(method.replace(", ", ",\n", 1), *cells, style="italic" if is_bound else None)
    return table


def ensembling_table(costs: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """How often methods that draft and check ensembled, and what they read; None where there is no such method.

    Args:
        costs: by method, as in ``results.json``.
    """
    shown = {method: cost for method, cost in costs.items() if "ensembled_per_token" in cost}
    if not shown:
        return None
    caption = "E/T: tokens that were ensembled; acceptance: drafted tokens that stand"
    table = Table(caption=caption, box=box.SIMPLE_HEAD, caption_justify="left")
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    table.add_column("", no_wrap=True)
    for heading in ("E/T %", "acceptance %"):
        table.add_column(heading, justify="right")
    table.add_column("tokens read per written token")
    for method, cost in shown.items():
        reads = ", ".join(f"{model} {count:.2f}" for model, count in cost["tokens_read_per_token"].items())
        acceptance = cost.get("acceptance")
        table.add_row(
            method.replace(", ", ",\n", 1),
            f"{100 * cost['ensembled_per_token']:.1f}",
            "–" if acceptance is None else f"{100 * acceptance:.1f}",
            reads,
        )
    return table


def percent(estimate: Estimated) -> str:
    """``58.0 (55.1 to 60.8)``."""
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _best(values: Sequence[float]) -> float | None:
    """None where all are equal: then nothing stands out."""
    return max(values) if values and max(values) > min(values) else None


def _cell(estimate: Estimated | None, best: float | None) -> Text:
    if estimate is None:
        return Text("–", "dim")
    value = Text(f"{100 * estimate.value:.0f}", BEST if estimate.value == best else "")
    return Text.assemble(value, "\n", (f"{100 * estimate.low:.0f}–{100 * estimate.high:.0f}", "dim"))
