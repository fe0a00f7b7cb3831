"""The words that the questions are about: things by kind, pairs of opposites, and their names in made-up Vask."""

import random
from string import ascii_lowercase

_THINGS = {
    "animal": "cat dog horse mouse lion tiger sheep goat rabbit monkey bear wolf",
    "food": "bread cheese apple soup rice cake butter honey onion potato egg salt",
    "tool": "hammer saw knife shovel drill brush ladder rope needle axe pliers wrench",
    "clothing": "hat coat shirt glove scarf boot sock dress belt jacket trousers cap",
    "place": "river forest city island valley beach village desert park harbor field hill",
}
KINDS = {kind: things.split() for kind, things in _THINGS.items()}
OPPOSITE_PAIRS = (
    ("hot", "cold"), ("big", "small"), ("old", "young"), ("wet", "dry"), ("fast", "slow"), ("high", "low"),
    ("loud", "quiet"), ("hard", "soft"), ("rich", "poor"), ("dark", "bright"), ("full", "empty"), ("long", "short"),
    ("clean", "dirty"), ("strong", "weak"), ("near", "far"), ("thick", "thin"), ("early", "late"), ("wide", "narrow"),
    ("sharp", "blunt"), ("heavy", "light"),
)  # fmt: skip
KIND_OF = {thing: kind for kind, things in KINDS.items() for thing in things}
OPPOSITE_OF = {word: other for pair in OPPOSITE_PAIRS for word, other in (pair, pair[::-1])}
THINGS, QUALITIES, LETTERS = tuple(KIND_OF), tuple(OPPOSITE_OF), tuple(ascii_lowercase)
WORDS = THINGS + QUALITIES


def _vask() -> dict[str, str]:
    """A made-up name of two syllables for every word; none is a word of this list."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    names = [one + other for one in syllables for other in syllables if one != other]
    return dict(zip(WORDS, random.Random("vask").sample(names, len(WORDS)), strict=True))


VASK_FOR = _vask()
