"""Pages say what the committed results say; a figure is read, judged and printed as it should be."""

import json
import re
from pathlib import Path

import pytest
from pages import BLOCK, PAGES, block, rendered
from rows import ROWS, SCRIPTS, Row, at, quarter_of_the_experts, read_by_experts, worst_of_hopeless
from speed_table import RESULTS, Figure, figure, headline, results_of, rows_table, unreadable, verdict


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_that_of_the_committed_results(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert rendered(page) == page, f"{path.name} is stale: python benchmarks/run.py --table"


def test_readme_and_results_are_among_the_pages() -> None:
    names = {path.name: BLOCK.findall(path.read_text(encoding="utf-8")) for path in PAGES}
    assert all(
        names[page] for page in ("README.md", "speed.md", "evaluation.md", "ensembles.md", "moe.md", "training.md")
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_row_finds_its_figure_in_the_committed_result(script) -> None:  # type: ignore[no-untyped-def]
    results = results_of(script.name)
    if results is not None:
        assert not list(unreadable(script.name, results))
        assert not re.search(r"/(home|root|tmp|work)/", json.dumps(results)), "a result names no folder of a machine"


def test_rows_are_of_scripts_that_are_run() -> None:
    names = [script.name for script in SCRIPTS]
    assert len(set(names)) == len(names)
    assert {row.script for row in ROWS} <= set(names)
    assert len({(row.what, row.script) for row in ROWS if not row.what.startswith("the same")}) == len(
        [row for row in ROWS if not row.what.startswith("the same")]
    )


@pytest.mark.parametrize(
    ("found", "printed"),
    [
        (0.979166, "0.98"),
        ({"median": 1.0275, "min": 0.9937, "max": 1.1187}, "1.03 (0.99 to 1.12)"),
        ({"median": 21.689, "min": 21.689, "max": 21.689}, "21.7"),
        ({"median": 1.387, "lower quartile": 1.285, "upper quartile": 1.613}, "1.39 (1.28 to 1.61, quartiles)"),
        ({"value": 0.0201, "low": 0.0151, "high": 0.0249}, "0.020 (0.015 to 0.025, 95 %)"),
    ],
)
def test_a_figure_is_printed_with_its_spread(found: object, printed: str) -> None:
    assert str(figure(found)) == printed


@pytest.mark.parametrize(
    ("value", "target", "word"),
    [
        (1.004, "≤ 1.00", "reached"),
        (1.006, "≤ 1.00", "**missed**"),
        (0.0804, "≤ 0.08", "reached"),
        (0.084, "≤ 0.08", "**missed**"),
        (9.9, "≥ 10", "**missed**"),
        (10.0, "≥ 10", "reached"),
        (0.1, "", ""),
    ],
)
def test_a_target_is_compared_with_what_is_printed(value: float, target: str, word: str) -> None:
    assert verdict(Figure(value), target) == word


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    row = Row("speed", "something", at("a", "b"), "≥ 2")
    assert "| speed | not measured yet | ≥ 2 |" in rows_table(tmp_path, [row])
    (tmp_path / "something.json").write_text(json.dumps({"a": {"b": {"median": 3, "min": 2, "max": 4}}}))
    assert "| speed | 3.00 (2.00 to 4.00) | ≥ 2 | reached |" in rows_table(tmp_path, [row])


def test_a_row_without_its_figure_is_named() -> None:
    results = results_of("engine_speed")
    assert results is not None
    del results["number of experts"]
    (problem,) = unreadable("engine_speed", results)
    assert (
        problem
        == "time per token with 8 experts ÷ with 2, same routing trace: no figure (KeyError: 'number of experts')"
    )


def test_tokens_of_all_experts_together() -> None:
    counts = {"router": 1.0, "expert0": 0.5, "expert1": 0.75}
    results = {"one stream, 3 experts": {"steady": {"tokens read per output token": counts}}}
    assert read_by_experts("steady")(results) == 1.25


def test_the_case_of_speculation_is_the_one_that_a_row_speaks_of() -> None:
    def case(**speeds: float) -> dict[str, object]:
        return {
            name.replace("_", ", "): {"tokens/s with / without": {"median": speed}} for name, speed in speeds.items()
        }

    hopeless = {"batch 1": case(off=0.5, router=0.98, ngram=0.97), "batch 16": case(off=0.5, router=0.96)}
    assert worst_of_hopeless({"hopeless": hopeless}) == {"median": 0.96}
    large = {
        "3.7 times the router, greedy": case(router_adaptive=2.1),
        "4.1 times the router, temperature 1": case(router_adaptive=1.2),
        "7.9 times the router, greedy": case(router_adaptive=2.6),
    }
    assert quarter_of_the_experts({"large experts": large}) == {"median": 2.1}


def test_blocks_of_the_page_follow_the_results(tmp_path: Path) -> None:
    page = "# A\n<!-- begin: bandwidth -->\nold\n<!-- end -->\ntext\n"
    expected = "# A\n<!-- begin: bandwidth -->\n*not measured yet*\n<!-- end -->\ntext\n"
    assert rendered(page, tmp_path) == expected
    assert rendered(expected, tmp_path) == expected
    assert block("engine_speed", None, RESULTS).startswith("| what | median |")


def test_a_block_may_be_one_table_of_several() -> None:
    tables = [block("zoo_comparison", number) for number in (1, 2)]
    assert len(set(tables)) == 2
    assert all(table.startswith("| right answers, %") for table in tables)
    with pytest.raises(IndexError):
        block("zoo_comparison", 99)


def test_the_headline_is_of_rows_that_stand_alone(tmp_path: Path) -> None:
    rows = [Row("speed", "x", at("a"), "≥ 2", is_headline=True), Row("more", "x", at("a"))]
    (tmp_path / "x.json").write_text('{"a": 3}')
    assert headline(tmp_path, rows).splitlines()[2:] == ["| speed | 3.00 | ≥ 2 |"]
