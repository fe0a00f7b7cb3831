"""From cells to figures: accuracies, bounds, differences and costs, against numbers worked by hand."""

from typing import Any

import pytest

from fusionroute.errors import DataError
from fusionroute.evaluation.compare.results import BEST_EXPERT, ORACLE, results
from fusionroute.evaluation.compare.settings import CompareSettings

SETTINGS = CompareSettings.parse(
    {
        "experts": {"math": "owner/math", "code": "owner/code"},
        "seeds": [0, 1],
        "methods": {
            "math": {"method": "single", "expert": "math"},
            "code": {"method": "single", "expert": "code"},
            "team": {"method": "fusion_route", "team": "runs/{seed}"},
        },
        "tasks": ["sums", "words"],
    }
)


def cell(method: str, task: str, scores: list[float], seed: int | None = None, **cost: Any) -> dict[str, Any]:
    spent = {"seconds": 1.0, "tokens_written": 10, "tokens_read": {"m": 20}, "peak_memory": {"weights": 5}, "batch": 4}
    examples = [
        {"prompt": f"{task} {at}", "target": "", "score": score, "tokens": {"expert": [method]}}
        for at, score in enumerate(scores)
    ]
    return {
        "method": method, "task": task, "seed": seed, "metric": "exact_match,none", "cost": spent | cost,
        "examples": examples,
    }  # fmt: skip


CELLS = [
    cell("math", "sums", [1, 1, 0, 0]),
    cell("math", "words", [0, 0]),
    cell("code", "sums", [0, 0, 1, 0]),
    cell("code", "words", [1, 0]),
    cell("team", "sums", [1, 1, 1, 0], seed=0),
    cell("team", "words", [1, 1], seed=0),
    cell("team", "sums", [1, 1, 0, 0], seed=1),
    cell("team", "words", [1, 0], seed=1),
]


def test_accuracies_average_over_seeds_and_tasks_alike() -> None:
    found = results(SETTINGS, CELLS)["accuracy"]
    assert found["team"]["sums"]["value"] == pytest.approx(5 / 8)
    assert found["team"]["words"]["value"] == pytest.approx(3 / 4)
    assert found["team"]["average"]["value"] == pytest.approx((5 / 8 + 3 / 4) / 2)
    assert (found["team"]["sums"]["n"], found["team"]["sums"]["seeds"]) == (4, 2)
    assert found["math"]["sums"]["low"] == pytest.approx(0.15, abs=0.005)  # Wilson's for 2 of 4
    assert found["math"]["sums"]["stderr"] == pytest.approx(0.25)


def test_bounds_are_the_best_expert_and_the_oracle() -> None:
    found = results(SETTINGS, CELLS)
    assert found["winners"] == {BEST_EXPERT: "code"}  # (1/4 + 1/2) / 2 against (1/2 + 0) / 2
    assert found["accuracy"][ORACLE]["sums"]["value"] == pytest.approx(3 / 4)
    assert found["accuracy"][ORACLE]["words"]["value"] == pytest.approx(1 / 2)
    assert found["accuracy"][BEST_EXPERT] == found["accuracy"]["code"]


def test_differences_are_paired_and_corrected() -> None:
    found = results(SETTINGS, CELLS)["differences"]
    assert list(found) == ["math", "code"]
    assert found["math"]["sums"]["value"] == pytest.approx(1 / 8)  # one of eight answers more
    assert found["math"]["average"]["value"] == pytest.approx((1 / 8 + 3 / 4) / 2)
    assert all(each["p_adjusted"] >= each["p"] for tasks in found.values() for each in tasks.values())
    smallest = min(tasks["average"]["p"] for tasks in found.values())  # the smaller of two counts twice
    assert min(tasks["average"]["p_adjusted"] for tasks in found.values()) == pytest.approx(min(1, 2 * smallest))


def test_what_is_missing_is_left_out_and_nothing_is_made_up() -> None:
    without = [each for each in CELLS if (each["method"], each["task"], each["seed"]) != ("team", "words", 1)]
    found = results(SETTINGS, without)
    assert set(found["accuracy"]["team"]) == {"sums"}
    assert set(found["differences"]["math"]) == {"sums"}
    assert found["accuracy"]["math"]["average"]
    only = results(SETTINGS, [each for each in CELLS if each["method"] != "code"])
    assert only["bounds"] == []
    assert only["accuracy"]["code"] == {}


def test_costs_add_up_over_cells() -> None:
    more = cell(
        "math", "words", [0, 0], seconds=5.0, tokens_written=30, tokens_read={"m": 40}, peak_memory={"weights": 9}
    )
    found = results(SETTINGS, [CELLS[0], more])["cost"]["math"]
    assert found == {
        "seconds_per_token": pytest.approx(6 / 40),
        "tokens_written": 40,
        "tokens_read_per_token": {"m": pytest.approx(60 / 40)},
        "peak_memory": {"weights": 9},
        "batch": 4,
    }
    assert results(SETTINGS, [cell("math", "sums", [1], tokens_written=0)])["cost"] == {}


def test_other_questions_are_no_pairs() -> None:
    other = cell("code", "sums", [0, 0, 1, 0])
    other["examples"][2]["target"] = "another"
    with pytest.raises(DataError, match=r"math and code were asked different questions in sums \(first at number 2\)"):
        results(SETTINGS, [CELLS[0], other])
    with pytest.raises(DataError, match="first at number 3"):
        results(SETTINGS, [CELLS[0], cell("code", "sums", [0, 0, 1])])


def test_bounds_need_every_expert_on_every_task() -> None:
    unfinished = [each for each in CELLS if (each["method"], each["task"]) != ("math", "words")]
    assert results(SETTINGS, unfinished)["bounds"] == []


def test_who_writes_is_told_of_methods_of_several_models_even_if_one_wrote_all() -> None:
    assert results(SETTINGS, CELLS)["usage"].keys() == {"team"}


def test_right_on_everything_with_every_seed_is_no_certainty() -> None:
    always = [cell("team", "sums", [1, 1, 1, 1], seed=seed) for seed in (0, 1)]
    found = results(SETTINGS, always)["accuracy"]["team"]["sums"]
    assert (found["value"], found["seeds"]) == (1, 2)
    assert found["low"] == pytest.approx(0.51, abs=0.005)  # Wilson's for 4 of 4
