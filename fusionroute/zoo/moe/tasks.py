"""Small questions of many kinds, each asked in many wordings; some tasks are never shown to a router in training."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from fusionroute.moe.questions.questions import Question
from fusionroute.zoo.moe import contents
from fusionroute.zoo.moe.contents import Content
from fusionroute.zoo.moe.splits import SPLITS, split_of
from fusionroute.zoo.moe.wordings import CLOSINGS, FAMILIAR, OPENINGS, WORDINGS

PATIENCE = 5000  # draws in vain after which a split counts as used up


@dataclass(frozen=True)
class Task:
    """`skill` is what answers it; a task that is held out is another way to ask for a skill that others need too."""

    name: str
    skill: str
    draw: Callable[[random.Random], Content]
    held_out: bool = False

    def question(self, rng: random.Random, familiar: bool = False) -> Question:
        """Asked in any of its wordings, or in one that is familiar to the router."""
        content, wordings = self.draw(rng), WORDINGS[self.name]
        asked = rng.choice(wordings[:FAMILIAR] if familiar else wordings).format(**content.slots)
        prompt = rng.choice(OPENINGS) + asked + rng.choice(CLOSINGS)
        return Question(prompt, content.answer, content.options, self.name)


MOE_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("next_letter", "alphabet", contents.next_letter),
        Task("first_letter", "spelling", contents.first_letter),
        Task("length", "length", contents.length),
        Task("addition", "sums", contents.addition),
        Task("parity", "parity", contents.parity),
        Task("largest", "size", contents.largest),
        Task("translation", "vask", contents.translation),
        Task("opposite", "opposites", contents.opposite),
        Task("kind", "kinds", contents.kind),
        Task("food_of", "food", contents.food_of),
        Task("last", "copying", contents.last),
        Task("swap", "copying", contents.swap),
        Task("series", "alphabet", contents.series, held_out=True),
        Task("tally", "sums", contents.tally, held_out=True),
        Task("dictionary", "vask", contents.dictionary, held_out=True),
        Task("analogy", "opposites", contents.analogy, held_out=True),
    )
}
SEEN = tuple(task.name for task in MOE_TASKS.values() if not task.held_out)
HELD_OUT = tuple(task.name for task in MOE_TASKS.values() if task.held_out)


def questions(task: str, split: str, count: int, seed: int = 0, *, familiar: bool = False) -> list[Question]:
    """That many different questions of one task and split, the same ones for the same seed.

    Raises:
        ValueError: an unknown task or split, or more questions than the split holds.
    """
    if task not in MOE_TASKS:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(MOE_TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    rng, found, misses = random.Random(f"{task} {split} {seed}"), dict[str, Question](), 0
    while len(found) < count:
        question = MOE_TASKS[task].question(rng, familiar)
        is_new = split_of(question.text) == split and question.text not in found
        misses = 0 if is_new else misses + 1
        if is_new:
            found[question.text] = question
        if misses > PATIENCE:
            raise ValueError(
                f"the {split} split of {task} has about {len(found)} questions, not {count}; ask for fewer"
            )
    return list(found.values())
