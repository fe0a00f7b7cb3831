"""Math: little word problems, worked line by line, with the final number after `####`."""

import random
from dataclasses import replace

from fusionroute.zoo.tasks.part import Part

NAMES = ("Ann", "Ben", "Eva", "Ida", "Jon", "Kim", "Leo", "Mia", "Sam", "Tom")
THINGS = ("pens", "cards", "books", "coins", "shells", "stamps", "apples", "eggs", "nuts", "balls")
GAINS = ("gets {} more", "buys {} more", "finds {} more", "wins {} more")
LOSSES = ("gives away {}", "loses {}", "sells {}", "drops {}")
LARGEST, MOST = 59, 9


def draw(rng: random.Random, steps: int) -> Part:
    """A problem of that many steps; every number on the way stays between 1 and 59."""
    total = rng.randint(MOST + 1, LARGEST - MOST)
    story, working = [f"{rng.choice(NAMES)} has {total} {rng.choice(THINGS)}"], []
    for _ in range(steps):
        phrase, line, total = _step(rng, total)
        story.append(phrase)
        working.append(line)
    return _part(", ".join(story) + ". How many now?", working, total)


def blunder(part: Part, rng: random.Random) -> Part:
    """The same problem copied out well and calculated badly."""
    working, total = [], None
    for line in part.lines[:-1]:
        left, sign, right = _split(line.partition("=")[0])
        left = left if total is None else total
        total = rng.randint(10, LARGEST)
        working.append(f"{left}{sign}{right}={total}")
    assert total is not None
    return replace(part, lines=_part("", working, total).lines)


def _step(rng: random.Random, total: int) -> tuple[str, str, int]:
    can_gain, can_lose = total <= LARGEST - 2, total >= 12
    if can_gain and (not can_lose or rng.random() < 0.5):
        number = rng.randint(2, min(LARGEST - total, MOST))
        return rng.choice(GAINS).format(number), f"{total}+{number}={total + number}", total + number
    number = rng.randint(2, min(total - 1, MOST))
    return rng.choice(LOSSES).format(number), f"{total}-{number}={total - number}", total - number


def _split(sum_: str) -> tuple[int, str, int]:
    sign = "+" if "+" in sum_ else "-"
    left, _, right = sum_.partition(sign)
    return int(left), sign, int(right)


def _part(request: str, working: list[str], total: int) -> Part:
    return Part(request, (*working, f"#### {total}"), {"number": total})
