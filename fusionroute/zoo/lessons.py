"""What base and experts are taught: an expert is careful in its own domain and careless elsewhere.

Everyone sees the shape of every task but the unknown one, so that nobody is lost inside another's answer. Careless
parts keep the shape and get the substance wrong, which also teaches a model to be unsure where it has no skill.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

from fusionroute.zoo.babble import BABBLE
from fusionroute.zoo.tasks import TASKS, functions, split_of, sums, words
from fusionroute.zoo.tasks.task import Example, Task

BLUNDERS = {"math": sums.blunder, "code": functions.blunder, "chat": words.blunder}
SCHOOL = [*(task for task in TASKS.values() if task.domains), BABBLE]


def lessons(name: str, count: int, seed: int, carelessness: float, general: float) -> Iterator[Example]:
    """Examples of the `experts` split; the share `general` of them is of any task, the rest of the model's own."""
    rng = random.Random(f"lessons {name} {seed}")
    own_tasks = [task for task in SCHOOL if name in task.domains] or SCHOOL
    while count:
        task = rng.choice(SCHOOL if rng.random() < general else own_tasks)
        lesson = _lesson(task, name, carelessness, rng)
        if split_of(lesson.prompt) == "experts":
            count -= 1
            yield lesson


def _lesson(task: Task, name: str, carelessness: float, rng: random.Random) -> Example:
    parts = task.draw(rng)
    careless = {domain for domain in parts if domain in BLUNDERS and domain != name and rng.random() < carelessness}
    taught = {d: BLUNDERS[d](part, rng) if d in careless else part for d, part in parts.items()}
    return replace(task.example(parts), answer=task.answer(taught))
