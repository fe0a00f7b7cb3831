"""The picture of the paper: each question as a mark, placed by its embedding, by its routing before, and after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from fusionroute.evaluation.report.routing_measures import questions_by_task
from fusionroute.evaluation.report.routing_projection import project, turned_like
from fusionroute.moe.pathways.pathways import Pathways
from fusionroute.terminal.tokens import PALETTE

SIDE, MARGIN = 360, 14
PICTURED = 1000  # questions; more are a blot, and a slow page
LONGEST = 320  # characters of a question that are shown
COLOURS = PALETTE[:6]  # yellow cannot be read on white
SHAPES = ("circle", "square", "triangle", "diamond")  # in turn, once all colours are taken
SIZES = ((150, 4.6), (400, 3.8), (PICTURED, 3.0))  # up to so many questions: the radius of a mark


@dataclass(frozen=True)
class Task:
    """A task with its colour and shape, and how many questions it has."""

    name: str
    n: int
    colour: str
    shape: str

    @property
    def mark(self) -> Markup:
        """For the legend."""
        return Markup(f'<path d="{_outline(self.shape, 7, 7, 4.6)}"/>')


@dataclass(frozen=True)
class Mark:
    """A question: its number in the picture, its task's number, whether it was answered right, where it stands."""

    question: int
    task: int
    is_right: bool
    outline: str


@dataclass(frozen=True)
class Panel:
    title: str
    marks: tuple[Mark, ...]
    kept: float | None


@dataclass(frozen=True)
class Picture:
    """Three panels by one projection."""

    projection: str
    panels: tuple[Panel, ...]


def tasks_shown(pathways: Pathways) -> list[Task]:
    """Every task, in the order they come; beyond colours times shapes they come again."""
    return [
        Task(name, len(rows), COLOURS[at % len(COLOURS)], SHAPES[at // len(COLOURS) % len(SHAPES)])
        for at, (name, rows) in enumerate(questions_by_task(pathways).items())
    ]


def pictured(pathways: Pathways, most: int = PICTURED) -> list[int]:
    """Places of the questions that are drawn: all, or ``most`` of them, in proportion to every task."""
    places = [place for rows in questions_by_task(pathways).values() for place in rows]
    if len(places) <= most:
        return sorted(places)
    return sorted(places[at] for at in torch.linspace(0, len(places) - 1, most).round().long().tolist())


def pictures(before: Pathways, after: Pathways, places: Sequence[int], projections: Sequence[str]) -> list[Picture]:
    """One picture per projection; routing before is turned to lie like the embeddings, routing after like before."""
    return [_picture(before, after, list(places), how) for how in projections]


def _picture(before: Pathways, after: Pathways, places: list[int], how: str) -> Picture:
    embedded, routed, rerouted = (
        project(rows[places], how) for rows in (before.embeddings, before.routing.flatten(1), after.routing.flatten(1))
    )
    first = turned_like(routed.points, embedded.points)
    second = turned_like(rerouted.points, first)
    return Picture(
        how,
        (
            Panel("Embeddings", _marks(embedded.points, before, places), embedded.kept),
            Panel("Routing before", _marks(first, before, places), routed.kept),
            Panel("Routing after", _marks(second, after, places), rerouted.kept),
        ),
    )


def _marks(points: Tensor, pathways: Pathways, places: Sequence[int]) -> tuple[Mark, ...]:
    """Wrong answers last, so that a few hollow marks are not lost under many full ones."""
    task_of = {place: task for task, rows in enumerate(questions_by_task(pathways).values()) for place in rows}
    shapes = [task.shape for task in tasks_shown(pathways)]
    radius = next(radius for most, radius in SIZES if len(places) <= most)
    marks = []
    for number, (place, (x, y)) in enumerate(zip(places, _in_frame(points).tolist(), strict=True)):
        task = task_of[place]
        marks.append(Mark(number, task, bool(pathways.correct[place]), _outline(shapes[task], x, y, radius)))
    return tuple(sorted(marks, key=lambda mark: not mark.is_right))


def _in_frame(points: Tensor) -> Tensor:
    """Both directions on one scale, with the middle in the middle; the picture's y grows downwards."""
    low, high = points.amin(0), points.amax(0)
    reach = float((high - low).max()) or 1.0
    placed = (points - (low + high) / 2) * ((SIDE - 2 * MARGIN) / reach)
    return SIDE / 2 + placed * torch.tensor([1.0, -1.0], dtype=placed.dtype)


def _outline(shape: str, x: float, y: float, radius: float) -> str:
    """The path of a mark; all shapes look about as large."""
    r = {"circle": radius, "square": 0.88 * radius, "triangle": 1.25 * radius, "diamond": 1.25 * radius}[shape]
    r2 = _n(2 * r)
    return {
        "circle": f"M{_n(x - r)} {_n(y)}a{_n(r)} {_n(r)} 0 1 0 {r2} 0a{_n(r)} {_n(r)} 0 1 0 -{r2} 0z",
        "square": f"M{_n(x - r)} {_n(y - r)}h{r2}v{r2}h-{r2}z",
        "triangle": f"M{_n(x)} {_n(y - r)}L{_n(x + 0.87 * r)} {_n(y + 0.6 * r)}H{_n(x - 0.87 * r)}z",
        "diamond": f"M{_n(x)} {_n(y - r)}l{_n(r)} {_n(r)} -{_n(r)} {_n(r)} -{_n(r)} -{_n(r)}z",
    }[shape]


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def questions_shown(before: Pathways, after: Pathways, places: Sequence[int]) -> list[dict[str, Any]]:
    """What the page's script tells of each mark."""
    return [
        {
            "text": _cut(before.questions[place].text),
            "answer": _cut(before.questions[place].answer),
            "right": [bool(before.correct[place]), bool(after.correct[place])],
        }
        for place in places
    ]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
