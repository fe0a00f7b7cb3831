"""The questions that the mixtures of experts are asked, for the YAML tasks of the folder ``moe``."""

from typing import Any

from datasets import Dataset

from fusionroute.zoo.moe.tasks import questions


def unseen(zoo_task: str, count: int, **_: Any) -> dict[str, Dataset]:
    """The split ``test``: the first so many questions of a task, with options where it has them."""
    return {"test": Dataset.from_list([question.as_row() for question in questions(zoo_task, "test", count)])}
