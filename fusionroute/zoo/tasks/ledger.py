"""A running account, told step by step in sentences: long answers, in which one slip spoils all that follows.

Every step names somebody new and restates the number so far, so an answer is right only if dozens of copies and half
a dozen sums are.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fusionroute.zoo.tasks.names import NAMES
from fusionroute.zoo.tasks.part import Part

THINGS = (
    "beads", "blankets", "bottles", "buttons", "candles", "carpets", "feathers", "hammers",
    "lanterns", "marbles", "melons", "necklaces", "parcels", "pumpkins", "ribbons", "tickets",
)  # fmt: skip
GAINS = ("adds", "brings", "delivers", "donates")
LOSSES = ("borrows", "collects", "removes", "steals")
LETTERS = "ABCDEFGHIJ"  # of the steps
SMALLEST, LARGEST = 10, 49
FIRST_LARGEST, MOST = 40, 6
Weights = Mapping[str, float]


@dataclass(frozen=True)
class Step:
    """`told` is the prompt's sentence, `worked` the answer's; `number` what was added or taken, None if neither."""

    told: str
    worked: str
    total: int
    number: int | None = None


@dataclass(frozen=True)
class Scene:
    """What a step starts from: who acts, on how many of what, and who has added or taken which number before."""

    name: str
    thing: str
    total: int
    before: Mapping[str, int]


def _gain(scene: Scene, rng: random.Random) -> Step | None:
    number = rng.randint(2, MOST)
    return _added(scene, f"{scene.name} {rng.choice(GAINS)} {number}", "", number)


def _loss(scene: Scene, rng: random.Random) -> Step | None:
    number, told = rng.randint(2, MOST), f"{scene.name} {rng.choice(LOSSES)}"
    total = scene.total - number
    if total < SMALLEST:
        return None
    worked = f"{told} {number}, and {scene.total} minus {number} leaves {total} {scene.thing}."
    return Step(f"{told} {number}.", worked, total, number)


def _same(scene: Scene, rng: random.Random) -> Step | None:
    """As many as somebody before: the number has to be looked up."""
    if not scene.before:
        return None
    model = rng.choice(list(scene.before))
    number = scene.before[model]
    return _added(scene, f"{scene.name} {rng.choice(GAINS)} as many as {model}", f", that is {number}", number)


def _added(scene: Scene, told: str, aside: str, number: int) -> Step | None:
    total = scene.total + number
    if total > LARGEST:
        return None
    worked = f"{told}{aside}, and {scene.total} plus {number} makes {total} {scene.thing}."
    return Step(f"{told}.", worked, total, number)


def _double(scene: Scene, rng: random.Random) -> Step | None:
    total = 2 * scene.total
    if total > LARGEST:
        return None
    told = f"{scene.name} doubles the pile"
    return Step(f"{told}.", f"{told}, and twice {scene.total} makes {total} {scene.thing}.", total)


KINDS: Mapping[str, Callable[[Scene, random.Random], Step | None]] = MappingProxyType(
    {"gain": _gain, "loss": _loss, "same": _same, "double": _double}
)
EVEN: Weights = MappingProxyType({"gain": 1.0, "loss": 1.5, "same": 0.7, "double": 0.3})


def draw(rng: random.Random, fewest: int, most: int, weights: Weights = EVEN, names: Sequence[str] = NAMES) -> Part:
    """An account of `fewest` to `most` steps; every total lies between 10 and 49.

    Kinds are drawn by `weights`; gain and loss need some, for only of these two one can always happen.
    """
    owner, *actors = rng.sample(names, 1 + rng.randint(fewest, most))
    thing, total = rng.choice(THINGS), rng.randint(SMALLEST, FIRST_LARGEST)
    told = [f"Start {owner} has {total} {thing}."]
    worked, before = [*told], dict[str, int]()
    for letter, name in zip(LETTERS, actors, strict=False):
        step = _step(Scene(name, thing, total, before), weights, rng)
        told.append(f"{letter} {step.told}")
        worked.append(f"{letter} {step.worked}")
        total = step.total
        if step.number is not None:
            before[name] = step.number
    told.append(f"How many {thing} are there?")
    return Part("\n".join(told), (*worked, f"#### {total}"), {"number": total})


def _step(scene: Scene, weights: Weights, rng: random.Random) -> Step:
    """The first kind drawn that keeps the number in bounds."""
    while True:
        kind = rng.choices(list(weights), list(weights.values()))[0]
        step = KINDS[kind](scene, rng)
        if step is not None:
            return step
