"""What a question is about and its right answer, whatever the words it is asked in."""

import random
from dataclasses import dataclass

from fusionroute.zoo.moe.lexicon import KIND_OF, KINDS, LETTERS, OPPOSITE_OF, QUALITIES, THINGS, VASK_FOR, WORDS

PARITIES = ("even", "odd")
CHOICES = 4  # options of a question whose wrong answers are drawn


@dataclass(frozen=True)
class Content:
    """``slots`` fill a wording; ``options`` are what an answer is chosen from, none if it is free."""

    slots: dict[str, str]
    answer: str
    options: tuple[str, ...] = ()


def next_letter(rng: random.Random) -> Content:
    at = rng.randrange(len(LETTERS) - 1)
    return Content({"x": LETTERS[at]}, LETTERS[at + 1])


def series(rng: random.Random) -> Content:
    at = rng.randrange(2, len(LETTERS) - 1)
    return Content({"x": LETTERS[at - 2], "y": LETTERS[at - 1], "z": LETTERS[at]}, LETTERS[at + 1])


def first_letter(rng: random.Random) -> Content:
    word = rng.choice(WORDS)
    return Content({"x": word}, word[0])


def length(rng: random.Random) -> Content:
    word = rng.choice(WORDS)
    return Content({"x": word}, str(len(word)))


def addition(rng: random.Random) -> Content:
    one, other = rng.randrange(10), rng.randrange(10)
    return Content({"x": str(one), "y": str(other)}, str(one + other))


def tally(rng: random.Random) -> Content:
    sum_, things = addition(rng), rng.sample(THINGS, 2)
    return Content({**sum_.slots, "v": things[0], "w": things[1]}, sum_.answer)


def parity(rng: random.Random) -> Content:
    number = rng.randrange(100)
    return Content({"x": str(number)}, PARITIES[number % 2], PARITIES)


def largest(rng: random.Random) -> Content:
    numbers = rng.sample(range(100), 3)
    x, y, z = map(str, numbers)
    return Content({"x": x, "y": y, "z": z}, str(max(numbers)), (x, y, z))


def translation(rng: random.Random) -> Content:
    words = rng.sample(WORDS, CHOICES)
    return Content({"x": words[0]}, VASK_FOR[words[0]], _shuffled([VASK_FOR[word] for word in words], rng))


def dictionary(rng: random.Random) -> Content:
    asked = translation(rng)
    other = rng.choice([word for word in WORDS if word != asked.slots["x"]])
    return Content({**asked.slots, "v": other, "w": VASK_FOR[other]}, asked.answer, asked.options)


def opposite(rng: random.Random) -> Content:
    word = rng.choice(QUALITIES)
    others = rng.sample([other for other in QUALITIES if other not in (word, OPPOSITE_OF[word])], CHOICES - 1)
    return Content({"x": word}, OPPOSITE_OF[word], _shuffled([OPPOSITE_OF[word], *others], rng))


def analogy(rng: random.Random) -> Content:
    asked = opposite(rng)
    other = rng.choice([word for word in QUALITIES if word not in (asked.slots["x"], asked.answer)])
    return Content({**asked.slots, "v": other, "w": OPPOSITE_OF[other]}, asked.answer, asked.options)


def kind(rng: random.Random) -> Content:
    thing = rng.choice(THINGS)
    return Content({"x": thing}, KIND_OF[thing], tuple(KINDS))


def food_of(rng: random.Random) -> Content:
    food = rng.choice(KINDS["food"])
    x, y, z = words = _shuffled([food, *rng.sample([thing for thing in THINGS if KIND_OF[thing] != "food"], 2)], rng)
    return Content({"x": x, "y": y, "z": z}, food, words)


def last(rng: random.Random) -> Content:
    x, y, z = rng.sample(WORDS, 3)
    return Content({"x": x, "y": y, "z": z}, z)


def swap(rng: random.Random) -> Content:
    x, y = rng.sample(WORDS, 2)
    return Content({"x": x, "y": y}, f"{y} {x}")


def _shuffled(words: list[str], rng: random.Random) -> tuple[str, ...]:
    return tuple(rng.sample(words, len(words)))
