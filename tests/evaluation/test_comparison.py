import pytest

from fusionroute.evaluation.comparison import Comparison

COMPARISON = Comparison(
    {
        "math": {"sums": [True, True, True, True], "words": [False, False]},
        "chat": {"sums": [False, False, False, True], "words": [True, True]},
    }
)


def test_rows_hold_every_task_and_the_average_of_tasks() -> None:
    rows = COMPARISON.rows()
    assert {task: estimate.value for task, estimate in rows["math"].items()} == {"sums": 1, "words": 0, "average": 0.5}
    assert rows["chat"]["average"].value == pytest.approx((0.25 + 1) / 2)
    assert rows["chat"]["sums"].n == 4


def test_the_best_and_how_much_better() -> None:
    assert COMPARISON.best(["math", "chat"]) == "chat"
    assert COMPARISON.difference("chat", "math").value == pytest.approx((-0.75 + 1) / 2)
    assert COMPARISON.difference("chat", "math", ["words"]).value == 1
