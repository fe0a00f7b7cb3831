"""The picture of an ablation: everything in its place, and no row left out."""

import re
import xml.etree.ElementTree as ET

import pytest

from fusionroute.errors import DataError
from fusionroute.evaluation.report.routing_ablation import WIDTH, ablation_svg

ROWS = [
    ("k", "1", 0.62, 0.60, 0.64),
    ("k", "3 & <all>", 0.70, 0.68, 0.72),
    ("λ", "0", 0.60, 0.55, 0.66),
]
SVG = "{http://www.w3.org/2000/svg}"


def drawn(text: str, kind: str) -> list[ET.Element]:
    return [each for each in ET.fromstring(text).iter() if kind in (each.get("class") or "").split()]


def test_dots_and_intervals_lie_on_one_axis() -> None:
    text = ablation_svg(ROWS, 0.61, 0.8)
    ticks = {float(each.text or ""): float(each.get("x", "")) for each in drawn(text, "middle")[:-1]}
    (low, left), (high, right) = min(ticks.items()), max(ticks.items())

    def at(share: float) -> float:
        return left + (100 * share - low) / (high - low) * (right - left)

    dots, ranges = drawn(text, "dot"), drawn(text, "range")
    for row, dot, span in zip(ROWS, dots, ranges, strict=True):
        places = (dot.get("cx"), span.get("x1"), span.get("x2"))
        assert [float(place or "") for place in places] == pytest.approx([at(share) for share in row[2:]], abs=0.11)
    for share, kind in ((0.61, "base"), (0.8, "oracle")):
        (line,) = drawn(text, kind)
        assert float(line.get("x1", "")) == float(line.get("x2", "")) == pytest.approx(at(share), abs=0.11)
    rows = [float(dot.get("cy", "")) for dot in dots]
    assert rows == sorted(rows)
    assert rows[2] - rows[1] > rows[1] - rows[0]  # a heading stands between the groups


def test_every_name_can_be_read() -> None:
    said = "".join(ET.fromstring(ablation_svg(ROWS, 0.61)).itertext())
    for part in ("k", "λ", "3 & <all>", "baseline 61.0", "62.0", "right answers, %"):
        assert part in said
    assert "oracle" not in said.split("}")[-1]
    long = [("layers", "every layer " * 12, 0.5, 0.4, 0.6)]
    text = ablation_svg(long, 0.5)
    (label,) = [each for each in drawn(text, "end") if (each.text or "").startswith("every")]
    assert (label.text or "").endswith("…")
    assert "every layer " * 12 in text  # whole where one points at it


@pytest.mark.parametrize("ends", [(0.0, 0.002), (0.999, 1.0), (0.5, 0.5)])
def test_lines_are_named_inside_the_picture(ends: tuple[float, float]) -> None:
    text = ablation_svg([("k", "1", 0.5, 0.0, 1.0)], *ends)
    for name in ("baseline", "oracle"):
        (label,) = [each for each in ET.fromstring(text).iter(f"{SVG}text") if (each.text or "").startswith(name)]
        x, reach = float(label.get("x", "")), 6.5 * len(label.text or "")
        left = x - reach if "end" in (label.get("class") or "") else x
        assert 0 < left < left + reach < WIDTH


def test_it_stands_alone_and_is_the_same_every_time() -> None:
    text = ablation_svg(ROWS, 0.61, 0.8)
    assert text == ablation_svg(list(ROWS), 0.61, 0.8)
    assert not re.search(r"href|url\(|@import|<script|<image", text)
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "at least one row"),
        ([ROWS[0], ROWS[2], ROWS[1]], "rows of group 'k' do not stand together"),
        ([("k", "1", 0.5, 0.6, 0.7)], "k, 1: the interval 0.6 to 0.7 does not hold the value 0.5"),
        ([("k", "1", float("nan"), 0.6, 0.7)], "does not hold the value nan"),
    ],
)
def test_rows_that_cannot_be_drawn(rows: list[tuple[str, str, float, float, float]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        ablation_svg(rows, 0.5)
