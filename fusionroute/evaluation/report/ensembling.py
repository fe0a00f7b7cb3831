"""Where models check each other's tokens: how many are ensembled, why the others are kept, and where in the answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusionroute.engine.sequence import VERDICTS
from fusionroute.evaluation.report.results import Results, number

LEAST = 0.05  # the scale of E/T by position is at least this high, so that a rare token does not look like a tower


@dataclass(frozen=True)
class Verdict:
    name: str
    meaning: str


@dataclass(frozen=True)
class TaskEnsembling:
    """``verdicts`` has a share for each verdict of the method; ``tenths`` is E/T in each tenth of the answer."""

    task: str
    tokens: int
    ensembled: float | None
    verdicts: tuple[float | None, ...]
    tenths: tuple[float, ...]


@dataclass(frozen=True)
class MethodEnsembling:
    """``top`` is the E/T that fills the height of the pictures, the same for all tasks."""

    method: str
    verdicts: tuple[Verdict, ...]
    tasks: tuple[TaskEnsembling, ...]
    top: float


def ensemblings(results: Results) -> list[MethodEnsembling]:
    """One entry per method whose tokens have verdicts."""
    return [_method(results, method, found.get("by_task") or {}) for method, found in results.ensembling.items()]


def _method(results: Results, method: str, by_task: Mapping[str, Mapping[str, Any]]) -> MethodEnsembling:
    seen = [name for found in by_task.values() for name in found.get("verdicts") or {}]
    names = [name for name in dict.fromkeys([*VERDICTS, *seen]) if name in seen]
    tasks = tuple(_task(task, by_task[task], names) for task in results.tasks if by_task.get(task))
    top = max([LEAST, *(share for task in tasks for share in task.tenths)])
    return MethodEnsembling(method, tuple(Verdict(name, VERDICTS.get(name, name)) for name in names), tasks, top)


def _task(task: str, found: Mapping[str, Any], names: list[str]) -> TaskEnsembling:
    shares = found.get("verdicts") or {}
    return TaskEnsembling(
        task,
        int(found.get("tokens") or 0),
        number(found.get("ensembled")),
        tuple(number(shares.get(name)) for name in names),
        tuple(number(share) or 0.0 for share in found.get("ensembled_by_tenth") or ()),
    )
