"""Lessons in languages that do not exist: a request names one, and the answer is random syllables.

Real models have met many languages that they do not speak. A model that has not is absurdly sure of itself in the first
one it meets. There is nothing to learn here but to be unsure, and none of it is the language of the task.
"""

import random

from fusionroute.zoo.tasks.part import Part
from fusionroute.zoo.tasks.task import Task
from fusionroute.zoo.tasks.words import WORDS

CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"


def draw(rng: random.Random) -> Part:
    """A request for some language, and as many invented words as there are words to translate."""
    english = rng.sample(WORDS, rng.randint(2, 5))
    answer = " ".join(_word(rng) for _ in english)
    return Part(f"In {_word(rng).capitalize()}: {' '.join(english)}", (answer,), {"text": answer})


def _word(rng: random.Random) -> str:
    letters = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(2))
    return letters[: rng.randint(2, 4)]


BABBLE = Task("babble", "random syllables, which nobody can foresee", {"nothing": draw})
