"""What the zoo's YAML tasks refer to: unseen questions, and the zoo's own checkers as a filter.

The judging is done in a filter because lm-eval gives a filter all answers at once, so that one sandbox serves them all.
"""

import json
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from fusionroute.zoo.contest import SEEN_IN_DEVELOPMENT
from fusionroute.zoo.judge import judge, row
from fusionroute.zoo.tasks import examples

METRIC = "correct"


def unseen(zoo_task: str, questions: int, **_: Any) -> dict[str, Dataset]:
    """The split ``test``: the first so many questions that no setting of the zoo was chosen on.

    Requirements differ from question to question in their columns, so each is written as JSON.
    """
    drawn = examples(zoo_task, "test", SEEN_IN_DEVELOPMENT + questions)[SEEN_IN_DEVELOPMENT:]
    rows = [{**row(example), "requirement": json.dumps(example.requirement)} for example in drawn]
    return {"test": Dataset.from_list(rows)}


def verdicts(answers: Sequence[Sequence[str]], questions: Sequence[dict[str, Any]]) -> list[list[float]]:
    """1 for each answer that meets its question's requirement, else 0; code among them is run in the sandbox."""
    asked = [question for question, repeats in zip(questions, answers, strict=True) for _ in repeats]
    rows = [{**question, "requirement": json.loads(question["requirement"])} for question in asked]
    judged = iter(judge(rows, [answer for repeats in answers for answer in repeats]))
    return [[next(judged) for _ in repeats] for repeats in answers]


def process_results(_: dict[str, Any], results: Sequence[float]) -> dict[str, float]:
    """The verdict that `verdicts` has put in the answer's place."""
    return {METRIC: results[0]}
