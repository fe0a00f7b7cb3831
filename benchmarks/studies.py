"""Measurements of what is answered, not of how fast: their commands in order, and whether they come to the same again.

Everything in them is seeded. Another processor adds sums in another order, which training multiplies: there, figures of
what was trained come again within their intervals, those of everything else as they were (docs/lab_log.md).
"""

import json
import math
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from speed_table import RESULTS

ABOUT = ("command", "commit", "commits", "date", "versions", "machine")  # of a result, not what was measured
TIME = "seconds"  # in the name of every figure that is a time
AGREEMENT = 1e-6  # relative: sums are added in another order where another number of threads adds them
SHOWN = 5


@dataclass(frozen=True)
class Study:
    """Commands below ``benchmarks/``, one after the other; each goes on where it was interrupted.

    Attributes:
        results: names of the files that they write in ``benchmarks/results``.
    """

    name: str
    commands: tuple[str, ...]
    results: tuple[str, ...]

    def words(self) -> list[list[str]]:
        return [[sys.executable, f"benchmarks/{first}", *rest] for first, *rest in map(shlex.split, self.commands)]


def _study(name: str, *parts: str, more: tuple[str, ...] = ()) -> Study:
    return Study(name, tuple(f"{name}.py {part}" for part in parts), (name, *more))


def _written_to(name: str) -> str:
    return f"--output benchmarks/results/{name}.json --overwrite"


STUDIES = (
    _study("theory", "--overwrite"),
    _study("zoo_comparison", "train", "measure --overwrite"),
    _study("ablation", "--overwrite"),
    _study("zoo_families", "train", "measure --overwrite"),
    _study("zoo_roma_optimiser", _written_to("zoo_roma_optimiser")),
    _study("zoo_roma", "train", "measure --overwrite", "ablate --overwrite", more=("zoo_roma_ablation",)),
    _study("zoo_roma_study", _written_to("zoo_roma_study")),
)


def figures(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of a result behind its place, but for times and what is said about the run."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if TIME not in key and (place or key not in ABOUT):
                yield from figures(inner, (*place, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from figures(inner, (*place, str(at)))
    else:
        yield place, value


def same(before: Any, after: Any) -> bool:
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (before, after))
    return math.isclose(before, after, rel_tol=AGREEMENT, abs_tol=AGREEMENT) if numbers else before == after


def agreement(before: Any, after: Any) -> str:
    """How many figures of a result came again, and the first that did not."""
    old, new = dict(figures(before)), dict(figures(after))
    places = list(dict.fromkeys([*old, *new]))
    others = [at for at in places if at not in old or at not in new or not same(old[at], new[at])]
    told = [f"  {' / '.join(at)}: was {old.get(at)}, is {new.get(at)}" for at in others[:SHOWN]]
    if len(others) > SHOWN:
        told.append(f"  and {len(others) - SHOWN} more")
    return "\n".join([f"{len(places) - len(others)} of {len(places)} figures as before, times aside", *told])


def kept(name: str) -> Any:
    """A result as it is now; None if there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
