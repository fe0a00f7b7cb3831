import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fusionroute.errors import DataError
from fusionroute.evaluation.report import write_report
from fusionroute.evaluation.report.page import render

HOSTILE = (
    "</script><script>alert(1)</script><img src='https://example.org/x' onerror=alert(1)>\"'&amp;"
    "\u2028\u2029\x00\x1b[31m{{ 7 * 7 }}"
)
RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
LOADING = {"src", "srcset", "data", "action", "formaction", "poster", "background", "manifest", "ping", "xlink:href"}
Comparison = tuple[dict[str, Any], list[dict[str, Any]]]


class Page(HTMLParser):
    """Elements with their attributes, and the text of scripts, styles and table rows."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.rows: list[list[str]] = []
        self.text = ""
        self._inside: str | None = None
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag in self.raw:
            self._inside = tag
            self.raw[tag].append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = None
        if tag in ("td", "th"):
            self.rows[-1][-1] = " ".join(self.rows[-1][-1].split())
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.raw[self._inside][-1] += data
            return
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.raw["script"][0])

    def row(self, name: str) -> list[str]:
        """The cells of the first table row of that name."""
        return next(row for row in self.rows if row[0] == name)


@pytest.fixture(scope="module")
def whole_page(whole: Comparison) -> str:
    return render(*whole)


def test_nothing_is_loaded_from_anywhere(whole_page: str) -> None:
    page = Page(whole_page)
    tags = [tag for tag, _ in page.elements]
    assert not {"link", "iframe", "object", "embed", "base", "form", "img", "image", "use"} & set(tags)
    for tag, attributes in page.elements:
        assert not LOADING & attributes.keys(), (tag, attributes)
        assert attributes.get("href", "#").startswith("#")
        assert "url(" not in (attributes.get("style") or "")
        assert not [name for name in attributes if name.startswith("on")]
    (style,) = page.raw["style"]
    assert "@import" not in style
    assert "url(" not in style


def test_the_policy_names_exactly_the_page_s_own_script(small: Comparison, page_of: Callable[..., str]) -> None:
    page = Page(page_of(*small))
    (policy,) = [a["content"] for tag, a in page.elements if (a.get("http-equiv") or "").startswith("Content-Sec")]
    _, script = page.raw["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_table_holds_the_record_s_values(whole: Comparison, whole_page: str) -> None:
    record, page = whole[0], Page(whole_page)
    for name in [*record["methods"], "oracle per prompt"]:
        values = [record["accuracy"][name][column] for column in [*record["tasks"], "average"]]
        shown = [[f"{100 * value[key]:.1f}" for key in ("value", "low", "high")] for value in values]
        assert page.row(name)[1:] == [f"{value}{low} to {high}" for value, low, high in shown]


def test_the_best_of_each_column_is_marked_and_no_bound(whole: Comparison, whole_page: str) -> None:
    record = whole[0]
    table = whole_page[whole_page.index('id="accuracy-table"') : whole_page.index("</table>")]
    marked = re.findall(r'data-value="([^"]*)" class="[^"]*\bbest\b', table)
    expected = []
    for method in record["methods"]:
        for column in [*record["tasks"], "average"]:
            values = [record["accuracy"][other][column]["value"] for other in record["methods"]]
            if record["accuracy"][method][column]["value"] == max(values):
                expected.append(max(values))
    assert [float(value) for value in marked] == expected
    bounds = table[table.index('class="bounds"') :]
    assert float(re.findall(r'data-value="([^"]*)"', bounds)[-1]) > max(expected[-1:])
    assert "best" not in re.findall(r'class="([^"]*)"', bounds)


def test_equal_methods_are_not_marked(small: Comparison, page_of: Callable[..., str]) -> None:
    record, cells = small
    for method in record["methods"]:
        record["accuracy"][method]["zoo_sums"] = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 30}
    page = page_of(record, cells)
    assert not re.search(r'data-value="0.5" class="[^"]*\bbest\b', page)


def test_the_plot_shows_methods_and_bounds_the_best_first(whole: Comparison, whole_page: str) -> None:
    record = whole[0]
    plot = whole_page[whole_page.index('class="plot dots"') : whole_page.index("<figcaption>")]
    names = re.findall(r'class="label">([^<]+)<', plot)
    averages = [record["accuracy"][name]["average"]["value"] for name in names]
    assert sorted(names) == sorted(record["accuracy"])
    assert averages == sorted(averages, reverse=True)


def test_differences_say_which_hold(small: Comparison, page_of: Callable[..., str]) -> None:
    record, cells = small
    found = {"low": -0.08, "high": 0.01, "p": 0.02, "n": 210}
    record["differences"]["Collab"]["average"] = {"value": -0.0315, "p_adjusted": 0.0499, **found}
    record["differences"]["math expert"]["average"] = {"value": -0.02, "p_adjusted": 0.05, **found}
    page = Page(page_of(record, cells))
    assert [[row[0], *row[2:]] for row in page.rows if "−8.0 to +1.0" in row] == [
        ["math expert", "−2.0", "−8.0 to +1.0", "0.020", "0.0500", "○ cannot tell"],
        ["Collab", "−3.1", "−8.0 to +1.0", "0.020", "0.0499", "▼ worse"],
    ]


def test_costs_are_shown_by_model(build: Callable[..., Comparison], page_of: Callable[..., str]) -> None:
    record, cells = build(("TIES", "Collab", "FusionRoute"), ("sums",))
    reads = {"router": 1.0, "math": 0.4, "chat": 0.25}
    memory = {"weights": 3 * 2**20, "cache": 2**29}
    record["cost"]["FusionRoute"] = {
        "seconds_per_token": 0.0123,
        "tokens_read_per_token": reads,
        "peak_memory": memory,
        "batch": 64,
    }
    page = Page(page_of(record, cells))
    heading = next(row for row in page.rows if row[:2] == ["math", "code"])
    assert heading == ["math", "code", "chat", "router", "one of its own", "all", "weights", "cache", "sum"]
    row = next(row for row in page.rows if "12.3 ms" in row)
    assert row[3:] == ["0.40", "–", "0.25", "1.00", "–", "1.65", "3.00 MiB", "512 MiB", "515 MiB"]
    row = next(row for row in page.rows if row[0] == "TIES" and row[-1].endswith("MiB"))
    assert row[3:9] == ["–", "–", "–", "–", "0.99", "0.99"]


def test_whatever_a_model_or_a_user_wrote_stays_text(small: Comparison, page_of: Callable[..., str]) -> None:
    record, cells = small
    plain = Page(page_of(record, cells))
    text = json.dumps([record, cells]).replace("FusionRoute", "hostile method").replace("zoo_sums", "hostile task")
    planted = json.dumps(HOSTILE)[1:-1]
    record, cells = json.loads(text.replace("hostile method", planted).replace("hostile task", "t" + planted))
    record |= {"title": HOSTILE, "command": HOSTILE, "settings": {HOSTILE: [HOSTILE]}, "versions": {HOSTILE: HOSTILE}}
    record["failed"] = [{"method": HOSTILE, "task": HOSTILE, "seed": 0, "error": HOSTILE}]
    for cell in cells:
        for example in cell["examples"]:
            example |= {"prompt": HOSTILE, "target": HOSTILE, "answer": HOSTILE, "finish_reason": HOSTILE}
            example["tokens"] = {"text": [HOSTILE, "\ud800"], "expert": ["math", HOSTILE], "decided_by": [HOSTILE] * 2}
    page = Page(page_of(record, cells))
    assert {tag for tag, _ in page.elements} - {tag for tag, _ in plain.elements} <= {"table", "td"}
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.raw["script"][1] == plain.raw["script"][1]
    item = page.data["tasks"][0]["items"][0]
    assert item["prompt"] == item["target"] == HOSTILE
    assert HOSTILE in page.data["methods"]
    assert item["answers"][0]["tokens"] == [HOSTILE, "\ud800"]
    assert page.text.count("{{ 7 * 7 }}") > 5


def test_no_line_end_that_scripts_know_stands_in_the_data(small: Comparison, page_of: Callable[..., str]) -> None:
    record, cells = small
    cells[0]["examples"][0]["prompt"] = "a\u2028b\u2029c<!--<script>"
    data = Page(page_of(record, cells, examples=99)).raw["script"][0]
    assert not set("\u2028\u2029<>&") & set(data)


@pytest.mark.parametrize(
    "missing", ["differences", "cost", "usage", "winners", "failed", "bounds", "metrics", "settings"]
)
@pytest.mark.parametrize("value", [None, {}])
def test_parts_of_the_record_may_be_missing(
    missing: str, value: Any, small: Comparison, page_of: Callable[..., str]
) -> None:
    record, cells = small
    record[missing] = value
    page = Page(page_of(record, cells))
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {"accuracy", "examples", "failures", "made"} <= ids
    assert ("usage" in ids) == (missing != "usage")
    assert ("cost" in ids) == (missing != "cost")


def test_one_method_on_one_task(page_of: Callable[..., str], build: Callable[..., Comparison]) -> None:
    record, cells = build(("Fine-tuned",), ("sums",))
    page = Page(page_of(record, cells))
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert "differences" not in ids
    assert len(page.row("Fine-tuned")) == 3
    assert page.data["methods"] == ["Fine-tuned"]


def test_missing_cells_are_empty_and_named(small: Comparison, page_of: Callable[..., str]) -> None:
    record, cells = small
    record["accuracy"]["Collab"] = {"zoo_sums": record["accuracy"]["Collab"]["zoo_sums"], "average": None}
    record["failed"] = [{"method": "Collab", "task": "zoo_all_three", "seed": None, "error": "out of memory"}]
    cells = [cell for cell in cells if (cell["method"], cell["task"]) != ("Collab", "zoo_all_three")]
    page = Page(page_of(record, cells))
    assert page.row("Collab")[2:] == ["–", "–"]
    assert ["Collab", "zoo_all_three", "–", "out of memory"] in page.rows
    answers = page.data["tasks"][1]["items"][0]["answers"]
    assert [answer is None for answer in answers] == [False, True, False]


def test_no_examples_at_all(small: Comparison, page_of: Callable[..., str]) -> None:
    record, _ = small
    assert Page(page_of(record, [])).data["tasks"] == []


def test_nan_is_no_value(small: Comparison, page_of: Callable[..., str]) -> None:
    record, cells = small
    record["accuracy"]["Collab"]["average"]["value"] = float("nan")
    record["cost"]["Collab"]["seconds_per_token"] = float("nan")
    cells[0]["examples"][0]["score"] = float("nan")
    page = page_of(record, cells, examples=99)
    assert "NaN" not in page.split("<main>")[1]
    assert not re.search(r"\bnan\b", page)


def test_the_page_stays_small_enough_to_send(whole: Comparison, whole_page: str) -> None:
    assert len(whole_page.encode()) < 2_000_000
    record, cells = whole
    words = [f" word{at}" for at in range(400)]
    tokens = {"text": words, "expert": ["math", "code"] * 200, "decided_by": ["both"] * 400}
    long = [cell | {"examples": [example | {"tokens": tokens} for example in cell["examples"]]} for cell in cells]
    page = render(record, long)
    assert 3_000_000 < len(page.encode()) < 5_000_000
    shown = [len(task["items"]) for task in Page(page).data["tasks"]]
    assert min(shown) >= 1
    assert max(shown) - min(shown) <= 1


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'fusionroute.comparison', not 'something'"):
        write_report({"format": "something"}, [], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_folder_is_made_and_an_old_page_replaced(small: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(*small, path)
    small[0]["title"] = "Another title"
    write_report(*small, path)
    assert "<h1>Another title</h1>" in path.read_text(encoding="utf-8")
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_what_was_ensembled_has_a_section_and_its_figures(checked: Comparison, page_of: Callable[..., str]) -> None:
    record, cells = checked
    page = Page(page_of(record, cells))
    assert [row[-2:] for row in page.rows if row and row[0] == "FusionRoute" and len(row) > 6][-1] == ["3.6", "92.5"]
    found = record["ensembling"]["FusionRoute"]["by_task"]["zoo_sums"]
    shares = [f"{100 * found['verdicts'].get(name, 0):.1f}" for name in ("consensus", "ensembled", "replaced")]
    section = [row for row in page.rows if row[:1] == ["zoo_sums"] and row[1:2] == [f"{found['tokens']:,}"]]
    assert [row[2:] for row in section] == [[f"{100 * found['ensembled']:.1f}", *shares]]
    assert "#ensembling" in [attributes.get("href") for _, attributes in page.elements]
    assert {verdict["name"] for verdict in page.data["verdicts"]} == {"consensus", "ensembled", "replaced"}


def test_comparisons_of_one_vocabulary_say_nothing_of_ensembling(
    small: Comparison, page_of: Callable[..., str]
) -> None:
    page = page_of(*small)
    assert "What was ensembled" not in page
    assert "acceptance" not in page
    assert Page(page).data["verdicts"] == []


def test_results_written_before_there_were_verdicts_still_make_a_page(page_of: Callable[..., str]) -> None:
    record = json.loads((RESULTS / "zoo_comparison.json").read_text(encoding="utf-8"))
    page = Page(page_of(record, []))
    assert page.row("FusionRoute")
    assert "What was ensembled" not in page.text
