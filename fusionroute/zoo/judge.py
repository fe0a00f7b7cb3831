"""The zoo's checkers as a judge of preference pairs: ``checker: fusionroute.zoo.judge:judge`` in a team file."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusionroute.zoo.tasks import Example, check


def row(example: Example) -> dict[str, Any]:
    """What a data file holds of an example, so that `judge` can check another answer to it."""
    return {
        "prompt": example.prompt,
        "completion": example.answer,
        "task": example.task,
        "requirement": example.requirement,
    }


def judge(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float]:
    """1 for an answer that meets its row's requirement, else 0."""
    examples = [Example(each["task"], each["prompt"], each["completion"], dict(each["requirement"])) for each in rows]
    return [float(is_right) for is_right in check(examples, answers)]
