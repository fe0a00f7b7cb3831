"""Tables of speed, from the committed results: every row with its target, and how each was made."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import ROOT, table
from rows import ROWS, SCRIPTS, Results, Row, Script

RESULTS = ROOT / "benchmarks" / "results"
SPREADS = (("min", "max", ""), ("lower quartile", "upper quartile", ", quartiles"), ("low", "high", ", 95 %"))
MISSING, UNRECORDED = "not measured yet", "not recorded"


@dataclass(frozen=True)
class Figure:
    """A median, or the one value there is, and how far it spreads."""

    value: float
    low: float | None = None
    high: float | None = None
    kind: str = ""

    def __str__(self) -> str:
        if self.low is None or self.high is None or self.low == self.high:
            return _digits(self.value)
        return f"{_digits(self.value)} ({_digits(self.low)} to {_digits(self.high)}{self.kind})"


def figure(found: Any) -> Figure:
    """What a row has read: a number, or a mapping with ``median`` or ``value`` and a spread of some kind."""
    if not isinstance(found, Mapping):
        return Figure(float(found))
    value = float(found["median"] if "median" in found else found["value"])
    for low, high, kind in SPREADS:
        if low in found:
            return Figure(value, float(found[low]), float(found[high]), kind)
    return Figure(value)


def _digits(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def verdict(value: Figure, target: str) -> str:
    """``reached`` or ``missed``, nothing where there is no target. The figure is compared as it is printed."""
    if not target:
        return ""
    sign, limit = target.split()
    printed = float(_digits(value.value))
    reached = printed <= float(limit) if sign == "≤" else printed >= float(limit)
    return "reached" if reached else "**missed**"


def results_of(script: str, folder: Path = RESULTS) -> Results | None:
    """The committed result of a script, or None."""
    path = folder / f"{script}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def rows_table(folder: Path = RESULTS, rows: Iterable[Row] = ROWS) -> str:
    """One line for each row: figure, target, whether it is reached, and where it comes from."""
    heads = ["what", "figure (min to max)", "target", "", "from"]
    return table(heads, [_line(row, results_of(row.script, folder)) for row in rows])


def headline(folder: Path = RESULTS, rows: Iterable[Row] = ROWS) -> str:
    """The rows that the README shows."""
    shown = [(row, results_of(row.script, folder)) for row in rows if row.is_headline]
    lines = [[row.what, str(figure(row.read(found))) if found else MISSING, row.target] for row, found in shown]
    return table(["what", "figure (min to max)", "aim"], lines)


def _line(row: Row, results: Results | None) -> list[str]:
    if results is None:
        return [row.what, MISSING, row.target, "", f"`{row.script}`"]
    found = figure(row.read(results))
    return [row.what, str(found), row.target, verdict(found, row.target), f"[{row.script}](#{row.script})"]


def sources(folder: Path = RESULTS, scripts: Iterable[Script] = SCRIPTS) -> str:
    """How each committed result was made: command, rounds, commit, day, versions, machine."""
    heads = ["result", "command", "rounds", "commit", "day", "torch", "threads", "machine"]
    return table(heads, [_source(script, results_of(script.name, folder)) for script in scripts])


def _source(script: Script, results: Results | None) -> list[str]:
    name = f'<a id="{script.name}"></a>{script.name}'
    command = " ".join(["python", f"benchmarks/{script.name}.py", *script.full.split()])
    if results is None:
        return [name, f"`{command}`", MISSING, *[""] * 5]
    what, machine = results.get("what", {}), results.get("machine", {})
    versions = results.get("versions", {})
    torch_version = versions.get("torch") or versions.get("fusionroute", {}).get("torch", "")
    return [
        name,
        f"`{_short(results['command'])}`" if "command" in results else UNRECORDED,
        str(what.get("rounds", "")),
        results.get("commit", UNRECORDED),
        results.get("date", UNRECORDED),
        torch_version,
        str(machine.get("torch_threads", machine.get("threads", ""))),
        what.get("device") or _machine(machine),
    ]


def _short(command: str) -> str:
    """Without what every command has."""
    return re.sub(r" --output \S+| --overwrite", "", command)


def _machine(machine: Mapping[str, Any]) -> str:
    cpus = f", {machine['cpus']} cores" if "cpus" in machine else ""
    return f"{machine.get('processor', machine.get('os', '').split('-')[0])}{cpus}"


def unreadable(script: str, results: Results) -> Iterator[str]:
    """Rows whose figure does not stand in the results of their script, with the reason."""
    for row in ROWS:
        if row.script == script:
            try:
                figure(row.read(results))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                yield f"{row.what}: no figure ({type(error).__name__}: {error})"
