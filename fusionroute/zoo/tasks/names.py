"""Rare names: syllables put together, so that every tokenizer cuts them in its own way."""

import random

ONSETS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "br", "st")
VOWELS = ("a", "e", "i", "o", "u")
CODAS = ("", "", "l", "n", "r", "x")


def _name(rng: random.Random) -> str:
    """Two or three syllables, such as Pirmon or Lendendur."""
    syllables = (rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((2, 2, 3))))
    return "".join(syllables).capitalize()


NAMES = tuple(sorted({_name(random.Random(number)) for number in range(160)}))
