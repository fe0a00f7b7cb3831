"""Code: a function `f(x)` of one or two idioms, judged by running it beside the reference."""

import random
from dataclasses import dataclass, replace

from fusionroute.zoo.tasks.idioms import LIST_TO_LIST, LIST_TO_VALUE, LISTS, TEXT_TO_TEXT, TEXT_TO_VALUE, TEXTS
from fusionroute.zoo.tasks.part import Part


@dataclass(frozen=True)
class Kind:
    """What `x` is, how to go on from it, how to end with it, and what to try it on."""

    noun: str
    onward: dict[str, str]
    final: dict[str, str]
    inputs: tuple[object, ...]


KINDS = (
    Kind("list", LIST_TO_LIST, LIST_TO_LIST | LIST_TO_VALUE, LISTS),
    Kind("text", TEXT_TO_TEXT, TEXT_TO_TEXT | TEXT_TO_VALUE, TEXTS),
)
HEADER = "def f(x):"
INDENT = "    "


def draw(rng: random.Random, steps: int) -> Part:
    """A function of that many idioms, the last of which is returned."""
    kind = rng.choices(KINDS, weights=(3, 2))[0]
    phrases = [*rng.sample(sorted(kind.onward), steps - 1), rng.choice(sorted(kind.final))]
    lines = _body([kind.final[phrase] for phrase in phrases])
    request = f"Write f(x) for a {kind.noun}: {', then '.join(phrases)}."
    return Part(request, lines, {"reference": "\n".join(lines), "inputs": list(kind.inputs)})


def blunder(part: Part, rng: random.Random) -> Part:
    """The right frame around the wrong idioms."""
    expressions = [rng.choice(_expressions()) for _ in part.lines[1:]]
    return replace(part, lines=_body(expressions))


def program(candidate: str, reference: str, inputs: list[object]) -> str:
    """A program that fails unless the candidate does what the reference does, on inputs that tell the idioms apart."""
    judge = reference.replace(HEADER, "def reference(x):")
    return f"{candidate}\n{judge}\nfor x in {inputs!r}:\n    assert repr(f(x)) == repr(reference(x))\n"


def _body(expressions: list[str]) -> tuple[str, ...]:
    onward = [f"{INDENT}x = {expression}" for expression in expressions[:-1]]
    return (HEADER, *onward, f"{INDENT}return {expressions[-1]}")


def _expressions() -> list[str]:
    return [expression for kind in KINDS for expression in kind.final.values()]
