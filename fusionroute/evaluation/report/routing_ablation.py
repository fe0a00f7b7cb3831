"""One picture of an ablation: every setting that was tried, with its interval, beside the baseline and the oracle."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from fusionroute.errors import DataError
from fusionroute.evaluation.report import axis
from fusionroute.evaluation.report.axis import Axis
from fusionroute.evaluation.report.wording import percent

WIDTH, ROW, HEAD, TOP, BOTTOM = 760, 19, 27, 30, 44
LETTER = 6.5  # about the width of a letter at 12 px
FIGURE = 52  # room for the value behind a row
LABELS = (90.0, 300.0)  # least and most room for the labels
MORE = "…"

# Read outside a page too, where nothing gives it colours or letters.
STYLE = """
text { font: 12px system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
.head { font-weight: 650; } .end { text-anchor: end; } .middle { text-anchor: middle; }
.range { stroke-width: 2.5; stroke-linecap: round; opacity: .5; }
.base, .oracle { stroke-width: 1.3; } .oracle { stroke-dasharray: 4 4; }
.paper { fill: #ffffff; } text { fill: #1c2128; } .soft { fill: #57606a; } .gold { fill: #8a6d1f; }
.dot { fill: #0b62c4; } .grid { stroke: #e3e8ec; } .rule { stroke: #d5dbe1; } .range { stroke: #0b62c4; }
.base { stroke: #57606a; } .oracle { stroke: #8a6d1f; }
@media (prefers-color-scheme: dark) {
  .paper { fill: #0f1318; } text { fill: #e4e9ee; } .soft { fill: #9aa5b1; } .gold { fill: #d0ad50; }
  .dot { fill: #63acf7; } .grid { stroke: #222932; } .rule { stroke: #343c46; } .range { stroke: #63acf7; }
  .base { stroke: #9aa5b1; } .oracle { stroke: #d0ad50; }
}
""".strip()

Setting = tuple[str, str, float, float, float]  # group, label, value, low, high


def ablation_svg(
    rows: Sequence[Setting], baseline: float, oracle: float | None = None, *, said: str = "right answers, %"
) -> str:
    """Every setting as a dot with its interval, one block a group, all on one axis, as an SVG that stands alone.

    It loads nothing, and has dark colours where its reader wants them.

    Args:
        rows: group, label, value, and the ends of its interval; shares, not percent. Rows of a group stand together.
        baseline: a share, drawn as a line: the untouched model.
        oracle: the same for what descent on the last prompt token finds with the label known; it bounds nothing.
        said: what is on the axis.

    Raises:
        DataError: no rows, a group that comes twice, or an interval that does not hold its value.
    """
    _check(rows)
    scale = axis.linear([end for row in rows for end in row[2:]] + [baseline] + ([] if oracle is None else [oracle]))
    left = min(max(LABELS[0], 12 + LETTER * max(len(label) for _, label, *_ in rows)), LABELS[1])
    plot = _Plot(scale, left + 12, WIDTH - FIGURE - 16)
    drawn, y = [], float(TOP)
    for group, settings in groupby(rows, key=lambda row: row[0]):
        drawn.append(_text(12, y + HEAD - 9, group, "head"))
        drawn.append(_line(12, WIDTH - 12, y + HEAD - 3, y + HEAD - 3, "rule"))
        y += HEAD
        for _, label, *values in settings:
            drawn += _setting(plot, left, y, label, *values)
            y += ROW
    height = y + BOTTOM
    lines = [(baseline, "base", "baseline", "soft")] + (
        [] if oracle is None else [(oracle, "oracle", "oracle", "gold")]
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {_n(height)}" width="{WIDTH}" '
            f'height="{_n(height)}" role="img" aria-label="{escape(said)} by setting">',
            f"<style>{STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{_n(height)}"/>',
            *_axis(plot, y, said),
            *_marked(plot, y, lines),
            *drawn,
            "</svg>\n",
        ]
    )


class _Plot:
    """Where a share lies across the picture."""

    def __init__(self, scale: Axis, left: float, right: float):
        self.scale, self.left, self.right = scale, left, right

    def at(self, share: float) -> float:
        return self.left + self.scale.at(share) / 100 * (self.right - self.left)


def _check(rows: Sequence[Setting]) -> None:
    if not rows:
        raise DataError("an ablation needs at least one row: group, label, value, low, high")
    groups = [group for group, _ in groupby(rows, key=lambda row: row[0])]
    if twice := [group for group in groups if groups.count(group) > 1]:
        raise DataError(f"the rows of group {twice[0]!r} do not stand together; put them one after another")
    for group, label, value, low, high in rows:
        if not low <= value <= high:
            raise DataError(f"{group}, {label}: the interval {low} to {high} does not hold the value {value}")


def _setting(plot: _Plot, left: float, y: float, label: str, value: float, low: float, high: float) -> list[str]:
    middle = y + ROW / 2
    said = f"{label}: {percent(value)} % ({percent(low)} to {percent(high)})"
    return [
        f"<g><title>{escape(said)}</title>",
        _text(left, middle + 4, _fitting(label, left - 12), "end"),
        _line(plot.at(low), plot.at(high), middle, middle, "range"),
        f'<circle class="dot" cx="{_n(plot.at(value))}" cy="{_n(middle)}" r="4.2"/>',
        _text(WIDTH - 12, middle + 4, percent(value), "end"),
        "</g>",
    ]


def _fitting(label: str, room: float) -> str:
    most = int(room / LETTER)
    return label if len(label) <= most else label[: most - 1].rstrip() + MORE


def _axis(plot: _Plot, bottom: float, said: str) -> list[str]:
    drawn = []
    for tick in plot.scale.ticks:
        x = plot.at(tick)
        drawn.append(_line(x, x, TOP, bottom, "grid"))
        drawn.append(_text(x, bottom + 17, f"{100 * tick:g}", "soft middle"))
    return [*drawn, _text((plot.left + plot.right) / 2, bottom + 35, said, "soft middle")]


def _marked(plot: _Plot, bottom: float, lines: Iterable[tuple[float, str, str, str]]) -> list[str]:
    """Lines from top to bottom with their names above, the name on the side that has room for it."""
    drawn = []
    for share, line, name, ink in lines:
        x, named = plot.at(share), f"{name} {percent(share)}"
        left_side = line == "base"
        reach = LETTER * len(named)
        to_the_left = (left_side and x - reach > 8) or x + reach > WIDTH - 8
        drawn.append(_line(x, x, TOP - 6, bottom, line))
        drawn.append(_text(x - 5 if to_the_left else x + 5, TOP - 9, named, f"{ink} end" if to_the_left else ink))
    return drawn


def _line(x1: float, x2: float, y1: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{_n(x1)}" x2="{_n(x2)}" y1="{_n(y1)}" y2="{_n(y2)}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}">{escape(text)}</text>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
