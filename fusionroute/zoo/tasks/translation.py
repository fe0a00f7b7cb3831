"""A language that no model of the zoo has seen: a fixed lexicon of made-up words, in English word order."""

import random

from fusionroute.zoo.tasks.part import Part

QUALITIES = {"red": "lum", "old": "tar", "big": "sne", "wet": "gwo", "new": "cil"}
SUBJECTS = {"girl": "zim", "boy": "kou", "cook": "pla", "nurse": "wex", "poet": "dov"}
VERBS = {"sees": "que", "likes": "vor", "calls": "bix", "hears": "thu", "wants": "yeg"}
OBJECTS = {"cats": "mir", "trees": "faz", "bells": "kwa", "ropes": "ixe", "doors": "obi"}
MOMENTS = {"now": "ela", "here": "hib", "again": "osk", "today": "niv", "alone": "cro"}
LEXICON = (QUALITIES, SUBJECTS, VERBS, OBJECTS, MOMENTS)


def draw(rng: random.Random) -> Part:
    """A sentence such as "old cook sees trees today", without articles."""
    english = [rng.choice(list(words)) for words in LEXICON]
    foreign = " ".join(words[word] for words, word in zip(LEXICON, english, strict=True))
    return Part(f"In Vask: {' '.join(english)}", (foreign,), {"text": foreign})
