"""What a comparison's record says, whatever of it is there: cells that failed are simply missing."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from fusionroute.errors import DataError

FORMAT = "fusionroute.comparison"
AVERAGE = "average"
BEST_SINGLE = "best single expert"
LEVEL = 0.05  # below this adjusted p a difference is said to hold


@dataclass(frozen=True)
class Value:
    """A measured value; the interval and p are None where the record has none. Shares, not percent."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    p: float | None = None
    p_adjusted: float | None = None

    @property
    def holds(self) -> bool:
        return self.p_adjusted is not None and self.p_adjusted < LEVEL


@dataclass(frozen=True)
class Results:
    """A view of ``results.json``.

    Raises:
        DataError: it is no record of a comparison.
    """

    record: Mapping[str, Any]

    def __post_init__(self) -> None:
        found = self.record.get("format")
        if found != FORMAT:
            raise DataError(f"a report needs a record of format {FORMAT!r}, not {found!r}; give it a results.json")

    @property
    def methods(self) -> list[str]:
        return list(self.record["methods"])

    @property
    def bounds(self) -> list[str]:
        return list(self.record.get("bounds") or ())

    @property
    def tasks(self) -> list[str]:
        return list(self.record["tasks"])

    @property
    def columns(self) -> list[str]:
        return [*self.tasks, AVERAGE]

    @property
    def reference(self) -> str | None:
        return self.record.get("reference")

    @property
    def single(self) -> str | None:
        """The expert that was best alone."""
        return (self.record.get("winners") or {}).get(BEST_SINGLE)

    def accuracy(self, row: str, column: str) -> Value | None:
        return _value(_inside(self.record, "accuracy", row, column))

    def average(self, row: str) -> Value | None:
        return self.accuracy(row, AVERAGE)

    def difference(self, method: str, column: str = AVERAGE) -> Value | None:
        """The reference minus this method, on the same questions."""
        return _value(_inside(self.record, "differences", method, column))

    def cost(self, method: str) -> Mapping[str, Any]:
        return _inside(self.record, "cost", method) or {}

    @property
    def usage(self) -> dict[str, Mapping[str, Any]]:
        """Method to who wrote what, in the methods' order; only where several models write."""
        found = self.record.get("usage") or {}
        return {method: found[method] for method in self.methods if found.get(method)}

    @property
    def ensembling(self) -> dict[str, Mapping[str, Any]]:
        """Method to what came of its checks by task; only where models check each other's tokens."""
        found = self.record.get("ensembling") or {}
        return {method: found[method] for method in self.methods if found.get(method)}

    @property
    def ranked(self) -> list[str]:
        """Methods by their average, the best first; those without one last, in the record's order."""
        return sorted(self.methods, key=lambda method: -value.value if (value := self.average(method)) else 1.0)


def _inside(record: Mapping[str, Any], *path: str) -> Any:
    found: Any = record
    for key in path:
        found = (found or {}).get(key)
    return found


def _value(found: Mapping[str, Any] | None) -> Value | None:
    value = number((found or {}).get("value"))
    if found is None or value is None:
        return None
    low, high, p, p_adjusted = (number(found.get(key)) for key in ("low", "high", "p", "p_adjusted"))
    return Value(value, low, high, found.get("n"), p, p_adjusted)


def number(found: Any) -> float | None:
    """A finite number, or None: what failed may be null or NaN."""
    return float(found) if isinstance(found, int | float) and isfinite(found) else None
