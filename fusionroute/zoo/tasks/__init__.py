"""The zoo's tasks: seeded generators, disjoint splits and exact checkers."""

import random
from functools import partial

from fusionroute.zoo.tasks import functions, ledger, sums, translation, words
from fusionroute.zoo.tasks.checking import check
from fusionroute.zoo.tasks.layouts import SUM_INSIDE_CODE
from fusionroute.zoo.tasks.splits import SHARES, split_of
from fusionroute.zoo.tasks.task import UNKNOWN, Example, Task

__all__ = ["FAMILY_TASKS", "SHARES", "TASKS", "Example", "Task", "check", "examples", "split_of"]

# Draws in vain after which a split counts as used up.
PATIENCE = 5000

_SUM, _FUNCTION, _LINE = partial(sums.draw, steps=1), partial(functions.draw, steps=1), words.draw_short
_LONG, _SHORT = partial(ledger.draw, fewest=6, most=10), partial(ledger.draw, fewest=2, most=3)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sums", "two-step word problems, final number after ####", {"math": partial(sums.draw, steps=2)}),
        Task("functions", "functions of two idioms, judged by running", {"code": partial(functions.draw, steps=2)}),
        Task("words", "verifiable instructions about words", {"chat": words.draw}),
        Task("sum_and_words", "a sum, then a line of words", {"math": _SUM, "chat": _LINE}),
        Task("sum_in_code", "a function with a sum worked inside", {"math": _SUM, "code": _FUNCTION}, SUM_INSIDE_CODE),
        Task("all_three", "a sum, a function and a line of words", {"math": _SUM, "code": _FUNCTION, "chat": _LINE}),
        Task("translation", "a made-up language that no expert knows", {UNKNOWN: translation.draw}),
    )
}

# What the families of other tokenizers answer; no expert of a team is taught it, and no team is compared on it.
FAMILY_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("ledger", "a running account of six to ten steps: long answers", {"ledger": _LONG}),
        Task("short_ledger", "the same of two or three steps", {"ledger": _SHORT}),
    )
}
EVERY_TASK = TASKS | FAMILY_TASKS


def examples(task: str, split: str, count: int, seed: int = 0) -> list[Example]:
    """That many different examples of one split, the same ones for the same seed."""
    if task not in EVERY_TASK:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(EVERY_TASK)}")
    if split not in SHARES:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SHARES)}")
    rng = random.Random(f"{task} {split} {seed}")
    found: dict[str, Example] = {}
    misses = 0
    while len(found) < count:
        example = EVERY_TASK[task].example(EVERY_TASK[task].draw(rng))
        is_new = split_of(example.prompt) == split and example.prompt not in found
        misses = 0 if is_new else misses + 1
        if is_new:
            found[example.prompt] = example
        if misses > PATIENCE:
            raise ValueError(f"the {split} split of {task} has about {len(found)} examples, not {count}; ask for fewer")
    return list(found.values())
