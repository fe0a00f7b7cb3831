"""The accuracy table, the plots of the same numbers, and the paired differences: rows ready to be printed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fusionroute.evaluation.report import axis
from fusionroute.evaluation.report.axis import Axis
from fusionroute.evaluation.report.results import AVERAGE, Results, Value

PANELS = 7  # small plots side by side before a new line begins
WHOLE = (0.0, 1.0)


@dataclass(frozen=True)
class Row:
    """A method or bound: one value per column, None where a cell is missing."""

    name: str
    kind: str  # "reference", "method" or "bound"
    values: tuple[Value | None, ...]
    best: tuple[bool, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Column:
    name: str
    metric: str
    questions: str


@dataclass(frozen=True)
class AccuracyTable:
    columns: tuple[Column, ...]
    methods: tuple[Row, ...]
    bounds: tuple[Row, ...]


@dataclass(frozen=True)
class Plot:
    """Rows against one axis; with several columns one small plot each."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    axis: Axis


@dataclass(frozen=True)
class Difference:
    """The reference minus one method: on average, and by task."""

    method: str
    average: Value
    tasks: tuple[Value | None, ...]

    @property
    def verdict(self) -> str:
        return verdict(self.average)


@dataclass(frozen=True)
class DifferenceTable:
    reference: str
    tasks: tuple[str, ...]
    rows: tuple[Difference, ...]
    axis: Axis


def accuracy_table(results: Results) -> AccuracyTable:
    """Methods and bounds in the record's order; the best method of each column is marked, bounds never are."""
    best = [_best(results.accuracy(method, column) for method in results.methods) for column in results.columns]
    metrics = results.record.get("metrics") or {}
    columns = tuple(Column(name, metrics.get(name, ""), _questions(results, name)) for name in results.columns)
    return AccuracyTable(
        columns,
        tuple(_row(results, method, best) for method in results.methods),
        tuple(_row(results, bound, [None] * len(best)) for bound in results.bounds),
    )


def average_plot(results: Results) -> Plot | None:
    """Everything by its average, methods and bounds together, the best first; None where nothing has an average."""
    found = {name: value for name in [*results.methods, *results.bounds] if (value := results.average(name))}
    names = sorted(found, key=lambda name: -found[name].value)
    rows = tuple(Row(name, _kind(results, name), (found[name],)) for name in names)
    return Plot((AVERAGE,), rows, axis.linear(_reach(found.values()), within=WHOLE)) if rows else None


def task_plots(results: Results) -> list[Plot]:
    """The tasks, a handful side by side, methods in the order of their average, all on the axis from 0 to 1."""
    whole = Axis(*WHOLE, (0.0, 0.5, 1.0))
    names = [*results.ranked, *results.bounds]
    count = -(-len(results.tasks) // PANELS)
    width = -(-len(results.tasks) // max(count, 1))
    groups = [results.tasks[at : at + width] for at in range(0, len(results.tasks), max(width, 1))]
    return [Plot(tuple(group), tuple(_task_row(results, name, group) for name in names), whole) for group in groups]


def difference_table(results: Results) -> DifferenceTable | None:
    """The reference against every method, the largest difference first; None where there is nothing to compare."""
    found = [
        Difference(method, value, tuple(results.difference(method, task) for task in results.tasks))
        for method in results.methods
        if method != results.reference and (value := results.difference(method))
    ]
    if not found or results.reference is None:
        return None
    rows = tuple(sorted(found, key=lambda row: -row.average.value))
    reach = axis.linear([0.0, *_reach(row.average for row in rows)])
    return DifferenceTable(results.reference, tuple(results.tasks), rows, reach)


def verdict(value: Value) -> str:
    """``better``, ``worse`` or ``unclear``: what may be claimed of the reference."""
    if not value.holds:
        return "unclear"
    return "better" if value.value > 0 else "worse"


def _best(values: Iterable[Value | None]) -> float | None:
    """None where all are equal: then nothing stands out."""
    found = [value.value for value in values if value]
    return max(found) if found and max(found) > min(found) else None


def _row(results: Results, name: str, best: Sequence[float | None]) -> Row:
    values = tuple(results.accuracy(name, column) for column in results.columns)
    marks = tuple(value is not None and value.value == top for value, top in zip(values, best, strict=True))
    winner = (results.record.get("winners") or {}).get(name, "")
    return Row(name, _kind(results, name), values, marks, f"here: {winner}" if winner else "")


def _task_row(results: Results, name: str, tasks: Sequence[str]) -> Row:
    return Row(name, _kind(results, name), tuple(results.accuracy(name, task) for task in tasks))


def _kind(results: Results, name: str) -> str:
    if name in results.bounds:
        return "bound"
    return "reference" if name == results.reference else "method"


def _questions(results: Results, column: str) -> str:
    """``n = 100``, or the range where cells are missing."""
    found = sorted({value.n for name in results.methods if (value := results.accuracy(name, column)) and value.n})
    if not found:
        return ""
    return f"n = {found[0]:,}" if len(found) == 1 else f"n = {found[0]:,} to {found[-1]:,}"


def _reach(values: Iterable[Value]) -> list[float]:
    return [end for value in values for end in (value.low, value.value, value.high) if end is not None]
