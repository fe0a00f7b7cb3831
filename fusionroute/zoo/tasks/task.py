"""What a task is: which parts its answers have, how they stand together, and how an example of it is drawn."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fusionroute.zoo.tasks.layouts import ONE_AFTER_ANOTHER, Layout, Parts
from fusionroute.zoo.tasks.part import Part

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Example:
    """`requirement` is all a checker needs beside the answer; it can be written as JSON."""

    task: str
    prompt: str
    answer: str
    requirement: dict[str, object]


@dataclass(frozen=True)
class Task:
    """`draws` makes the parts of an answer, each named by the domain whose skill it needs."""

    name: str
    description: str
    draws: Mapping[str, Callable[[random.Random], Part]]
    layout: Layout = ONE_AFTER_ANOTHER

    @property
    def domains(self) -> tuple[str, ...]:
        """The experts whose skill an answer needs; none has the unknown domain's."""
        return tuple(domain for domain in self.draws if domain != UNKNOWN)

    def draw(self, rng: random.Random) -> Parts:
        return {domain: draw(rng) for domain, draw in self.draws.items()}

    def answer(self, parts: Parts) -> str:
        return "\n".join(self.layout.write(parts))

    def example(self, parts: Parts) -> Example:
        return Example(self.name, self.layout.ask(parts), self.answer(parts), self.layout.require(parts))
