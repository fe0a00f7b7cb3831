from typing import Any

from fusionroute.evaluation.report.provenance import gaps, pairs
from fusionroute.evaluation.report.results import Results


def record(**more: Any) -> Results:
    base = {"format": "fusionroute.comparison", "methods": ["a", "b"], "tasks": ["s", "t"], "seeds": [0, 1]}
    return Results(base | more)


def cells(*keys: tuple[str, str, int | None]) -> list[dict[str, Any]]:
    return [{"method": method, "task": task, "seed": seed, "examples": []} for method, task, seed in keys]


def test_a_whole_comparison_has_no_gaps() -> None:
    done = cells(("a", "s", None), ("a", "t", None), *(("b", task, seed) for task in "st" for seed in (0, 1)))
    assert gaps(record(), done) == []


def test_what_failed_and_what_nobody_mentions_is_listed_once() -> None:
    done = cells(("a", "s", None), ("b", "s", 0), ("b", "s", 1), ("b", "t", 0))
    failed = [{"method": "b", "task": "t", "seed": 1, "error": "out of memory"}]
    found = [(gap.method, gap.task, gap.seed, gap.reason) for gap in gaps(record(failed=failed), done)]
    assert found == [("b", "t", "1", "out of memory"), ("a", "t", "–", "not run")]


def test_a_method_that_failed_everywhere_is_listed_by_what_failed() -> None:
    failed = [{"method": "b", "task": task, "seed": seed, "error": "x"} for task in "st" for seed in (0, 1)]
    found = gaps(record(failed=failed), cells(("a", "s", None), ("a", "t", None)))
    assert [(gap.task, gap.seed) for gap in found] == [("s", "0"), ("s", "1"), ("t", "0"), ("t", "1")]


def test_nested_facts_are_dotted_and_an_empty_list_says_none() -> None:
    assert pairs({"cpu": {"cores": 2}, "gpus": [], "devices": [{"device": "cpu"}, "y"]}) == [
        ("cpu.cores", "2"),
        ("gpus", "none"),
        ("devices", "cpu, y"),
    ]
