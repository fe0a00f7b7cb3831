"""What a routing report claims, with its intervals: alignment, and right answers by task, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusionroute.evaluation.report.results import AVERAGE, Value, number
from fusionroute.evaluation.statistics import (
    DRAWS,
    Difference,
    Estimate,
    holm,
    paired_difference,
    stratified_mean,
    wilson,
)
from fusionroute.moe.pathways.alignment import Alignment, Measure
from fusionroute.moe.pathways.pathways import Pathways

NUMBERS = 2**22  # of one bundle of draws, which bounds their memory
UNNAMED = "all questions"
BASE, ORACLE = "base", "oracle"  # methods of ``results`` between which a gap is closed


@dataclass(frozen=True)
class MeasureRow:
    """One measure of alignment. ``chance`` is what unrelated routing would score, before and after."""

    name: str
    meaning: str
    before: Estimate
    after: Estimate
    difference: Estimate
    chance: tuple[float, float]


@dataclass(frozen=True)
class TaskRow:
    """Right answers to a task's questions, or on average over tasks; ``difference`` is after minus before."""

    task: str
    n: int
    before: Value
    after: Value
    difference: Value
    won: int  # wrong before, right after
    lost: int

    @property
    def is_average(self) -> bool:
        return self.task == AVERAGE


@dataclass(frozen=True)
class MethodRow:
    """A method's share of right answers by column, and how much of the gap from base to oracle it closes."""

    method: str
    values: tuple[Value | None, ...]
    closed: tuple[float | None, ...]


def measure_rows(found: Alignment) -> list[MeasureRow]:
    """Every measure with 95 % intervals: a percentile bootstrap that draws questions, the same ones for all measures.

    The other questions, in whose midst a question has its neighbours, stay as they are.
    """
    named = {name: (meaning, measure) for name, meaning, measure in _measures(found) if measure is not None}
    columns = [column for _, each in named.values() for column in _columns(each)]
    estimates = iter(resampled_means(np.stack(columns, 1)))
    return [
        MeasureRow(name, meaning, next(estimates), next(estimates), next(estimates), measure.chance)
        for name, (meaning, measure) in named.items()
    ]


def _measures(found: Alignment) -> list[tuple[str, str, Measure | None]]:
    return [
        ("CKA", "centred kernel alignment of routing and embedding similarity", found.cka),
        ("CKA, debiased", "the same without what a question has in common with itself", found.debiased_cka),
        ("neighbour overlap", f"share of the {found.k} nearest by embedding that are so by routing", found.overlap),
        ("task separation", f"share of the {found.k} nearest by routing that are of the same task", found.separation),
    ]


def _columns(measure: Measure) -> list[np.ndarray]:
    before, after = measure.before.numpy(), measure.after.numpy()
    return [before, after, after - before]


def resampled_means(columns: np.ndarray, *, seed: int = 0) -> list[Estimate]:
    """Means of the columns ``[n, m]`` of one set of items, whose rows are drawn together."""
    n = len(columns)
    generator = np.random.default_rng(seed)
    bundle = max(1, NUMBERS // n)
    sizes = [min(bundle, DRAWS - at) for at in range(0, DRAWS, bundle)]
    draws = np.concatenate([generator.multinomial(n, np.full(n, 1 / n), size) / n @ columns for size in sizes])
    lows, highs = np.percentile(draws, [2.5, 97.5], axis=0)
    means, errors = columns.mean(0), draws.std(0)
    return [
        Estimate(float(mean), float(low), float(high), n, float(error))
        for mean, low, high, error in zip(means, lows, highs, errors, strict=True)
    ]


def task_rows(before: Pathways, after: Pathways) -> list[TaskRow]:
    """Every task, and their average where there are several; p is adjusted over the tasks by Holm's method."""
    asked = questions_by_task(before)
    ours, theirs = ([each.correct[rows].double().tolist() for rows in asked.values()] for each in (before, after))
    differences = [paired_difference([second], [first]) for first, second in zip(ours, theirs, strict=True)]
    adjusted = holm({task: each.p for task, each in zip(asked, differences, strict=True)})
    rows = [
        _task_row(task, wilson(int(sum(first)), len(first)), wilson(int(sum(second)), len(second)),
                  difference, adjusted[task], [first], [second])
        for task, first, second, difference in zip(asked, ours, theirs, differences, strict=True)
    ]  # fmt: skip
    if len(rows) > 1:
        change = paired_difference(theirs, ours)
        rows.append(_task_row(AVERAGE, stratified_mean(ours), stratified_mean(theirs), change, change.p, ours, theirs))
    return rows


def questions_by_task(pathways: Pathways) -> dict[str, list[int]]:
    """Task to the places of its questions, tasks in the order they come."""
    found: dict[str, list[int]] = {}
    for place, task in enumerate(pathways.tasks):
        found.setdefault(task or UNNAMED, []).append(place)
    return found


def _task_row(
    task: str,
    before: Estimate,
    after: Estimate,
    change: Difference,
    p_adjusted: float,
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
) -> TaskRow:
    pairs = [(a, b) for mine, others in zip(ours, theirs, strict=True) for a, b in zip(mine, others, strict=True)]
    won, lost = sum(b > a for a, b in pairs), sum(b < a for a, b in pairs)
    # p may be one of numpy's floats, whose comparisons are no plain bools
    difference = Value(change.value, change.low, change.high, change.n, float(change.p), float(p_adjusted))
    return TaskRow(task, before.n, _value(before), _value(after), difference, won, lost)


def _value(estimate: Estimate) -> Value:
    return Value(estimate.value, estimate.low, estimate.high, estimate.n)


def method_columns(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All columns of the methods, the average last."""
    names = list(dict.fromkeys(name for columns in results.values() for name in columns))
    return sorted(names, key=lambda name: name == AVERAGE)


def method_rows(results: Mapping[str, Mapping[str, Any]]) -> list[MethodRow]:
    """Methods in the order they were given; a gap is closed where there are ``base`` and ``oracle``."""
    columns = method_columns(results)
    values = {method: tuple(_given(row.get(column)) for column in columns) for method, row in results.items()}
    nothing = (None,) * len(columns)
    base, oracle = (values.get(name, nothing) for name in (BASE, ORACLE))
    return [
        MethodRow(method, row, tuple(_closed(*ends) for ends in zip(row, base, oracle, strict=True)))
        for method, row in values.items()
    ]


def _given(found: Any) -> Value | None:
    if isinstance(found, Mapping):
        value = number(found.get("value"))
        return None if value is None else Value(value, number(found.get("low")), number(found.get("high")))
    value = number(found)
    return None if value is None else Value(value)


def _closed(value: Value | None, base: Value | None, oracle: Value | None) -> float | None:
    """Where the oracle is no better than the base there is no gap to close."""
    if value is None or base is None or oracle is None or oracle.value <= base.value:
        return None
    return (value.value - base.value) / (oracle.value - base.value)
