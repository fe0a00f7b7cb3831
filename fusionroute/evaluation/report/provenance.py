"""How the comparison was made, and which of its cells are missing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from fusionroute.evaluation.report.results import Results


@dataclass(frozen=True)
class Gap:
    """A cell that has no result."""

    method: str
    task: str
    seed: str
    reason: str


def gaps(results: Results, cells: Iterable[Mapping[str, Any]]) -> list[Gap]:
    """Cells that failed, by the record, and cells that nobody mentions, in the order of methods and tasks."""
    failed = [
        Gap(str(cell.get("method", "")), str(cell.get("task", "")), _seed(cell.get("seed")), str(cell.get("error", "")))
        for cell in results.record.get("failed") or ()
    ]
    return failed + _unmentioned(results, [*cells, *(results.record.get("failed") or ())])


def _unmentioned(results: Results, mentioned: Iterable[Mapping[str, Any]]) -> list[Gap]:
    """A method that has a cell of any seed is expected to have all seeds."""
    seeds: dict[str, set[Any]] = {}
    done = set()
    for cell in mentioned:
        key = cell.get("method"), cell.get("task"), cell.get("seed")
        seeds.setdefault(str(key[0]), set()).add(key[2])
        done.add(key)
    found = []
    for method in results.methods:
        given = seeds.get(method, {None})
        expected = [None] if given == {None} else list(results.record.get("seeds") or sorted(given - {None}))
        found += [
            Gap(method, task, _seed(seed), "not run")
            for task in results.tasks
            for seed in expected
            if (method, task, seed) not in done
        ]
    return found


def _seed(seed: Any) -> str:
    return "–" if seed is None else str(seed)


def facts(results: Results) -> list[tuple[str, str]]:
    """Label and text of what a reader asks first; what the record does not say is left out."""
    record = results.record
    found = {
        "Date": record.get("date"),
        "Command": record.get("command"),
        "Commit": record.get("commit"),
        "Seeds": ", ".join(map(str, record.get("seeds") or ())),
    }
    return [(label, str(text)) for label, text in found.items() if text]


def pairs(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """A mapping, perhaps nested, as dotted names and values."""
    flat: list[tuple[str, str]] = []
    for name, value in (found or {}).items():
        if isinstance(value, Mapping):
            flat += [(f"{name}.{inner}", text) for inner, text in pairs(value)]
        else:
            flat.append((str(name), ", ".join(map(_item, value)) or "none" if isinstance(value, list) else str(value)))
    return flat


def _item(value: Any) -> str:
    return " ".join(map(str, value.values())) if isinstance(value, Mapping) else str(value)


def settings_text(results: Results) -> str:
    """The compare file as YAML."""
    settings = results.record.get("settings")
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100) if settings else ""
