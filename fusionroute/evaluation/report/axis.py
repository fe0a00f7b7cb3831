"""Where a value lies on an axis, in percent of its length, and which values are worth a tick."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, log10

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
DECADE = (1.0, 2.0, 5.0)
MARGIN = 1.6


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``; logarithmic if asked."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """0 at the low end, 100 at the high end; what lies outside is drawn at the end."""
        low, high, here = (log10(v) if self.logarithmic else v for v in (self.low, self.high, max(value, self.floor)))
        return round(min(max(100 * (here - low) / (high - low), 0.0), 100.0), 2)

    @property
    def floor(self) -> float:
        return self.low if self.logarithmic else float("-inf")


def linear(values: Iterable[float], *, ticks: int = 5, within: tuple[float, float] | None = None) -> Axis:
    """Round ends around all values, never beyond ``within``."""
    found = list(values) or [0.0, 1.0]
    low, high = min(found), max(found)
    step = _step((high - low or 0.1) / ticks)
    low, high = floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step
    if high - low < step:
        low, high = low - step, high + step
    if within:
        low, high = max(low, within[0]), min(high, within[1])
    count = round((high - low) / step)
    return Axis(low, high, tuple(round(low + at * step, 10) for at in range(count + 1)))


def logarithmic(values: Iterable[float]) -> Axis:
    """Ends a little beyond the values, which are positive; ticks at 1, 2 and 5 of every decade."""
    found = list(values)
    low, high = min(found) / MARGIN, max(found) * MARGIN
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    marks = [round(step * 10.0**decade, 12) for decade in decades for step in DECADE]
    return Axis(low, high, tuple(mark for mark in marks if low <= mark <= high), logarithmic=True)


def _step(least: float) -> float:
    power = 10.0 ** floor(log10(least))
    return next(power * step for step in STEPS if power * step >= least * (1 - 1e-9))
