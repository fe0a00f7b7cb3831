"""Chat: verifiable instructions about words, such as case, repetition, choice and separators."""

import random
from collections.abc import Callable
from dataclasses import replace

from fusionroute.zoo.tasks.part import Part

_WORDS = """
apple badge beach bench bird brick brush camel chair cloud corn crown doctor drum earth engine field fish
flower forest glass gold harbor hat horse house jewel jungle king kite knife ladder lemon letter mirror mouse
needle onion paint pearl pilot pirate plate pocket river robot salt school singer snow spider spoon star stone
sun tailor tower travel valley velvet wagon water wheel window
"""
WORDS = tuple(_WORDS.split())
CASES: dict[str, Callable[[str], str]] = {
    "in capitals": str.upper,
    "in small letters": str.lower,
    "with a capital": str.capitalize,
}
SEPARATORS = {"dashes": "-", "commas": ",", "dots": ".", "stars": "*"}
COUNTS = {"twice": 2, "three times": 3, "four times": 4}


def draw(rng: random.Random) -> Part:
    """An instruction of a randomly chosen kind."""
    return rng.choice((_several, _any_two, _spelled, _repeated))(rng)


def draw_short(rng: random.Random) -> Part:
    """An instruction about one word, short enough to stand beside other requests."""
    return rng.choice((_spelled, _repeated))(rng)


def blunder(part: Part, rng: random.Random) -> Part:
    """An answer to some other instruction."""
    return replace(part, lines=draw_short(rng).lines)


def _several(rng: random.Random) -> Part:
    words, (case, change), (mark, separator) = rng.sample(WORDS, 2), _case(rng), _separator(rng)
    request = f"Say {' and '.join(words)} {case} with {mark}."
    return _part(request, [change(word) for word in words], separator)


def _spelled(rng: random.Random) -> Part:
    word, (mark, separator) = rng.choice(WORDS), _separator(rng)
    case, change = rng.choice(list(CASES.items())[:2])
    return _part(f"Spell {word} {case} with {mark}.", list(change(word)), separator)


def _repeated(rng: random.Random) -> Part:
    word, (case, change), (mark, separator) = rng.choice(WORDS), _case(rng), _separator(rng)
    often, count = rng.choice(list(COUNTS.items()))
    return _part(f"Say {word} {often} {case} with {mark}.", [change(word)] * count, separator)


def _any_two(rng: random.Random) -> Part:
    words, (case, change), (mark, separator) = rng.sample(WORDS, 3), _case(rng), _separator(rng)
    allowed = [change(word) for word in words]
    request = f"Pick two of {', '.join(words)} {case} with {mark}."
    return Part(request, (separator.join(allowed[:2]),), {"pick": {"count": 2, "of": allowed, "separator": separator}})


def _part(request: str, items: list[str], separator: str) -> Part:
    return Part(request, (separator.join(items),), {"items": {"list": items, "separator": separator}})


def _case(rng: random.Random) -> tuple[str, Callable[[str], str]]:
    return rng.choice(list(CASES.items()))


def _separator(rng: random.Random) -> tuple[str, str]:
    return rng.choice(list(SEPARATORS.items()))
