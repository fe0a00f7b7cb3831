from typing import Any

import pytest

from fusionroute.evaluation.report.reading import read
from fusionroute.evaluation.report.results import Results


def value(share: float, low: float, high: float, p: float | None = None) -> dict[str, Any]:
    return {"value": share, "low": low, "high": high, "p": p, "p_adjusted": p, "n": 100}


@pytest.fixture
def record() -> dict[str, Any]:
    return {
        "format": "fusionroute.comparison",
        "methods": ["math expert", "Collab", "FusionRoute"],
        "bounds": ["best single expert"],
        "tasks": ["sums", "words"],
        "reference": "FusionRoute",
        "winners": {"best single expert": "math expert"},
        "accuracy": {
            "math expert": {"average": value(0.17, 0.16, 0.18)},
            "Collab": {"average": value(0.70, 0.66, 0.74)},
            "FusionRoute": {"average": value(0.87, 0.84, 0.89)},
            "best single expert": {"average": value(0.99, 0.98, 1.0)},
        },
        "differences": {
            "math expert": {"average": value(0.70, 0.67, 0.72, 0.0001)},
            "Collab": {"average": value(0.17, 0.13, 0.20, 0.2)},
        },
    }


def said(record: dict[str, Any]) -> tuple[str, str, list[str]]:
    found = read(Results(record))
    return found.lead, found.headline.replace("\u00a0", " "), [text.replace("\u00a0", " ") for text in found.more]


def test_the_best_method_its_gain_and_what_holds(record: dict[str, Any]) -> None:
    lead, headline, more = said(record)
    assert lead == "FusionRoute"
    assert headline == (
        "answers 87.0 % right on average over 2 tasks (95 % interval 84.0 to 89.0), 70.0 points (67.0 to 72.0) above "
        "the best single expert, math expert (Holm-adjusted p < 0.001)."
    )
    assert more == [
        "That is the highest of 3 methods.",
        "Of 2 methods, FusionRoute is better than 1, worse than 0, and 1 cannot be told from it (5 % level, Holm).",
    ]


def test_where_another_is_best_that_is_said_first(record: dict[str, Any]) -> None:
    record["accuracy"]["Collab"]["average"] = value(0.9, 0.88, 0.93)
    record["differences"]["Collab"]["average"] = value(-0.03, -0.05, 0.01, 0.3)
    lead, headline, more = said(record)
    assert lead == "Collab"
    assert headline == "answers 90.0 % right on average over 2 tasks (95 % interval 88.0 to 93.0)."
    assert more[1] == (
        "FusionRoute is 3.0 points (−1.0 to 5.0) below Collab, which cannot be told from chance "
        "(Holm-adjusted p = 0.300)."
    )
    assert more[2].startswith("FusionRoute is 70.0 points (67.0 to 72.0) above the best single expert, math expert")


def test_where_the_single_expert_is_best_it_is_said_once(record: dict[str, Any]) -> None:
    record["accuracy"]["math expert"]["average"] = value(0.9, 0.88, 0.93)
    record["differences"]["math expert"]["average"] = value(-0.03, -0.05, -0.01, 0.01)
    lead, _, more = said(record)
    assert lead == "math expert"
    assert [text for text in more if "points" in text] == [
        "FusionRoute is 3.0 points (1.0 to 5.0) below the best single expert, math expert (Holm-adjusted p = 0.010)."
    ]


def test_equal_averages_are_named(record: dict[str, Any]) -> None:
    record["accuracy"]["Collab"]["average"] = value(0.87, 0.84, 0.89)
    record["accuracy"]["math expert"]["average"] = value(0.87, 0.84, 0.89)
    lead, _, more = said(record)
    assert lead == "FusionRoute"
    assert more[0] == "math expert, Collab have the same average."


def test_one_method_is_compared_with_nothing(record: dict[str, Any]) -> None:
    record |= {"methods": ["FusionRoute"], "tasks": ["sums"], "winners": {}, "differences": {}}
    assert said(record) == ("FusionRoute", "answers 87.0 % right on sums (95 % interval 84.0 to 89.0).", [])


def test_without_an_average_there_is_no_winner(record: dict[str, Any]) -> None:
    record["accuracy"] = {}
    assert said(record) == ("", "No method has finished all tasks, so there is no average to compare.", [])
