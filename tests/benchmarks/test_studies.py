"""The studies that `run.py` repeats, and what it says of their figures."""

import copy
import json

import pytest
from measuring import ROOT
from pages import BLOCK, PAGES
from rows import SCRIPTS
from speed_table import RESULTS
from studies import STUDIES, agreement, figures

RESULT = {
    "commit": "a",
    "machine": {"cpus": 2},
    "accuracy": {"FusionRoute": {"value": 0.5, "n": 10}},
    "cost": {"seconds_per_token": 0.1, "tokens": [1, 2]},
}


def test_every_result_is_made_again_by_the_one_command() -> None:
    made = {name for study in STUDIES for name in study.results} | {script.name for script in SCRIPTS}
    assert {path.stem for path in RESULTS.glob("*.json")} <= made
    shown = {name for page in PAGES for _, name, *_ in BLOCK.findall(page.read_text(encoding="utf-8"))}
    assert shown - {"rows", "sources", "headline"} <= made


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_commands_are_there(study: object) -> None:
    for words in study.words():  # type: ignore[attr-defined]
        assert (ROOT / words[1]).is_file()


def test_times_and_what_is_said_of_the_run_are_no_figures() -> None:
    assert dict(figures(RESULT)) == {
        ("accuracy", "FusionRoute", "value"): 0.5,
        ("accuracy", "FusionRoute", "n"): 10,
        ("cost", "tokens", "0"): 1,
        ("cost", "tokens", "1"): 2,
    }


def test_a_figure_that_came_out_otherwise_is_named() -> None:
    again = copy.deepcopy(RESULT)
    again["commit"], again["cost"]["seconds_per_token"] = "b", 9.0  # type: ignore[index]
    assert agreement(RESULT, again) == "4 of 4 figures as before, times aside"
    again["accuracy"]["FusionRoute"]["value"] = 0.6  # type: ignore[index]
    again["cost"]["tokens"].append(3)  # type: ignore[index]
    assert agreement(RESULT, again).splitlines() == [
        "3 of 5 figures as before, times aside",
        "  accuracy / FusionRoute / value: was 0.5, is 0.6",
        "  cost / tokens / 2: was None, is 3",
    ]


def test_the_committed_results_hold_figures() -> None:
    for name in (name for study in STUDIES for name in study.results):
        result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        assert len(list(figures(result))) > 5, name
