"""Who writes: each expert's share of the tokens by task, and where in the answer its tokens stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusionroute.evaluation.report.colours import ink_on
from fusionroute.evaluation.report.results import Results

TENTHS = 10
ROOM = 0.07  # a smaller share has no room for its number


@dataclass(frozen=True)
class Part:
    """One expert's piece of a stacked bar: start and length in percent."""

    expert: str
    colour: str
    ink: str
    start: float
    length: float

    @property
    def has_room(self) -> bool:
        return self.length >= 100 * ROOM


@dataclass(frozen=True)
class TaskUsage:
    """``tenths`` is empty where positions were not recorded; a tenth without tokens is an empty bar."""

    task: str
    shares: tuple[Part, ...]
    tenths: tuple[tuple[Part, ...], ...]


@dataclass(frozen=True)
class MethodUsage:
    method: str
    experts: tuple[str, ...]
    tasks: tuple[TaskUsage, ...]


def usages(results: Results, colours: Mapping[str, str]) -> list[MethodUsage]:
    """One entry per method whose tokens come from several models; they stand in the order of ``colours``."""
    return [_method(results, method, usage, colours) for method, usage in results.usage.items()]


def writers(results: Results) -> list[str]:
    """Everybody who writes in any method: the experts in the order of the settings, as a terminal shows them, first."""
    named = (results.record.get("settings") or {}).get("experts")
    found = [name for usage in results.usage.values() for name in _writers(usage)]
    return list(dict.fromkeys([*(name for name in named or () if name in found), *found]))


def _writers(usage: Mapping[str, Any]) -> list[str]:
    return [*usage["experts"], *(name for share in (usage.get("by_task") or {}).values() for name in share or {})]


def _method(results: Results, method: str, usage: Mapping[str, Any], colours: Mapping[str, str]) -> MethodUsage:
    experts = tuple(name for name in colours if name in _writers(usage))
    by_task, by_position = usage.get("by_task") or {}, usage.get("by_position") or {}
    tasks = tuple(
        TaskUsage(task, _stack(by_task[task], experts, colours), _tenths(by_position.get(task), experts, colours))
        for task in results.tasks
        if by_task.get(task)
    )
    return MethodUsage(method, experts, tasks)


def _tenths(
    positions: Mapping[str, Sequence[float]] | None, experts: Sequence[str], colours: Mapping[str, str]
) -> tuple[tuple[Part, ...], ...]:
    if not positions:
        return ()
    count = min(len(series) for series in positions.values())
    return tuple(
        _stack({expert: series[at] for expert, series in positions.items()}, experts, colours) for at in range(count)
    )


def _stack(shares: Mapping[str, float | None], experts: Sequence[str], colours: Mapping[str, str]) -> tuple[Part, ...]:
    """The parts fill the bar whatever the shares add up to: few tokens at a place still have a split."""
    given = {expert: shares.get(expert) or 0.0 for expert in experts}
    total = sum(given.values())
    parts, start = [], 0.0
    for expert, share in given.items():
        length = 100 * share / total if total > 0 else 0.0
        if length > 0:
            colour = colours[expert]
            parts.append(Part(expert, colour, ink_on(colour), round(start, 2), round(length, 2)))
        start += length
    return tuple(parts)
