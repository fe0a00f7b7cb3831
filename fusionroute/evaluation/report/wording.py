"""Numbers as the page prints them: percent and points with one decimal, a true minus, nothing more exact than it is."""

from fusionroute.evaluation.report.results import LEVEL, Value

NOTHING = "–"
MINUS = "−"
NBSP = "\u00a0"


def percent(share: float | None) -> str:
    return NOTHING if share is None else _signed(f"{100 * share:.1f}")


def points(difference: float | None) -> str:
    """``+3.1``; a zero has no sign."""
    if difference is None:
        return NOTHING
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else _signed(text)


def percent_interval(value: Value) -> str:
    return NOTHING if value.low is None else f"{percent(value.low)} to {percent(value.high)}"


def points_interval(value: Value) -> str:
    return NOTHING if value.low is None else f"{points(value.low)} to {points(value.high)}"


def p_value(p: float | None) -> str:
    """Three digits, and near the level as many as it takes to say on which side of it p is."""
    if p is None:
        return NOTHING
    if p < 0.001:
        return f"<{NBSP}0.001"
    digits = 4 if abs(p - LEVEL) < 0.0005 else 3
    while (float(text := f"{p:.{digits}f}") < LEVEL) is not (p < LEVEL):
        digits += 1
    return text


def seconds(value: float | None) -> str:
    """Three digits, in the unit that suits: ``12.3 ms``, ``1.20 s``."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0 s"
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if value * scale >= 1:
            return f"{_digits(value * scale)} {unit}"
    return f"{_digits(value * 1e6)} µs"


def size(count: float | None) -> str:
    """``3.6 MiB``."""
    if count is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{_digits(count)} {unit}"
        count /= 1024
    return f"{_digits(count)} TiB"


def ratio(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def several(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
