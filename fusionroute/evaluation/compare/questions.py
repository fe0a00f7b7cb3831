"""What a task asks, and how: whether two cells were measured on the same, and whether answers are drawn."""

import hashlib
import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

from lm_eval.api.task import Task

from fusionroute.evaluation.compare.settings import Decoding
from fusionroute.evaluation.tasks import TaskSettings

# What decides how questions are put and judged, as far as it is data
CONFIG = ("output_type", "num_fewshot", "description", "target_delimiter", "fewshot_delimiter", "generation_kwargs")


def count(tasks: Sequence[Task], settings: TaskSettings) -> int:
    """Questions in all, under the limit, which is each task's."""
    sizes = [len(task.eval_docs) for task in tasks]
    return sum(size if settings.limit is None else min(settings.limit, size) for size in sizes)


def digest(tasks: Sequence[Task], settings: TaskSettings) -> str:
    """Names the questions with their right answers, and how they are put; another for any change of either."""
    made = hashlib.sha256()
    for task in tasks:
        made.update(json.dumps({key: task.get_config(key) for key in CONFIG}, default=str).encode())
        for document in islice(task.eval_docs, settings.limit):
            asked = (
                task.doc_to_text(document),
                task.doc_to_target(document),
                task.doc_to_choice(document) if _has_choices(task) else None,
            )
            made.update(json.dumps(asked, default=str).encode())
    return made.hexdigest()


def are_drawn(tasks: Sequence[Task], decoding: Decoding) -> bool:
    """Whether answers are sampled, by the task's own options or those of the comparison."""
    return any(_is_drawn(task, decoding) for task in tasks if task.OUTPUT_TYPE == "generate_until")


def _is_drawn(task: Task, decoding: Decoding) -> bool:
    options: dict[str, Any] = dict(task.get_config("generation_kwargs") or {}) | decoding.overrides
    temperature = float(options.get("temperature") or 0)
    return temperature > 0 and bool(options.get("do_sample", True))


def _has_choices(task: Task) -> bool:
    return bool(task.OUTPUT_TYPE == "multiple_choice")
