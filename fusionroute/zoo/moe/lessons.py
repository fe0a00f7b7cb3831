"""What is taught: questions of the `experts` split with the experts that are to answer, and notes of what is asked."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from fusionroute.zoo.moe.roster import READERS, experts_of
from fusionroute.zoo.moe.splits import split_of
from fusionroute.zoo.moe.tasks import MOE_TASKS


@dataclass(frozen=True)
class Lesson:
    """`experts` are the two that work from the last token of the prompt on; what stands before it the readers read."""

    prompt: str
    answer: str
    experts: tuple[int, int]


def lessons(count: int, notes: float, rng: random.Random) -> Iterator[Lesson]:
    """That many, of all tasks in all wordings. The share ``notes`` of them is taught to the readers alone.

    A note names the skill that a request needs. So readers come to know what is asked but not the answer, and experts
    the answer but not what is asked. A gate finds both sides at the last token of a prompt; to join them is left to it.
    """
    tasks = list(MOE_TASKS.values())
    while count:
        task = rng.choice(tasks)
        question = task.question(rng)
        if split_of(question.text) != "experts":
            continue
        count -= 1
        if rng.random() < notes:
            yield Lesson(question.text, task.skill, READERS)
        else:
            yield Lesson(question.text, question.answer, experts_of(task.skill))
