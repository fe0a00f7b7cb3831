"""Which λ? Routers tuned with several, 0 always among them, on the same layers, data and steps; all are reported."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionroute.errors import SettingsError
from fusionroute.moe.asking import ask
from fusionroute.moe.roma.folder import POINTS_FOLDER, SWEEP_FILE, open_run
from fusionroute.moe.roma.roma import Prepared, facts, prepare, result_of, tune, write_result
from fusionroute.moe.roma.router_delta import DELTA_FILE, load_delta, refuse_other_base, save_delta, tensors_on_disk
from fusionroute.moe.roma.settings import RoMASettings
from fusionroute.output import write_json
from fusionroute.progress import Progress, Silent


@dataclass(frozen=True)
class Point:
    """One λ, and how the routers tuned with it answer the development questions.

    Attributes:
        weight: λ; None for the untouched model.
        correct, n: right answers of how many, over all and by task.
        loss: mean negative log-likelihood per token of the right answers.
    """

    weight: float | None
    correct: int
    n: int
    loss: float
    tasks: dict[str, tuple[int, int]]

    @property
    def mean(self) -> Fraction:
        """Share of right answers, the mean over tasks; exact, so that equals are equal."""
        return sum((Fraction(right, asked) for right, asked in self.tasks.values()), Fraction()) / len(self.tasks)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "mean_of_tasks": float(self.mean)}


@dataclass(frozen=True)
class Sweep:
    """Every point, and the λ that was chosen."""

    base: Point
    points: tuple[Point, ...]
    chosen: float

    def as_json(self) -> dict[str, Any]:
        return {
            "chosen": self.chosen,
            "chosen_by": "the mean over tasks of the share of right answers to the development questions; of equals "
            "the lowest loss, then the least λ",
            "base": self.base.as_json(),
            "points": [point.as_json() for point in self.points],
        }


def sweep(
    settings: RoMASettings, output: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Sweep:
    """Tune once for every λ of ``settings.sweep`` and for 0, each from the untouched routers, and keep the best.

    Chosen on ``data.dev``, never on evaluation sets: the best mean of its tasks' accuracies, of equals the lowest loss,
    then the least λ.
    An interrupted sweep goes on where it stopped.

    Args:
        output: gets what `train_roma` writes, of the chosen λ; ``points/`` with the routers of every λ, and
            ``sweep.json``, which says of the run what ``roma.json`` does.

    Raises:
        SettingsError: no development questions; and what `train_roma` raises.
        CheckpointError: a λ was tuned in another base than the one that is there now.
    """
    if not settings.data.dev:
        raise SettingsError("a sweep chooses λ on questions that are neither trained on nor reported: name data.dev")
    folder, told = Path(output), progress or Silent()
    open_run(folder, settings, "sweep", overwrite=overwrite)
    prepared = prepare(settings, folder, told)
    untouched = [weight.detach().clone() for weight in prepared.gates.parameters()]
    base = _measure(prepared, None)
    told.finish(f"untouched: {base.correct} of {base.n} development questions")
    points = []
    for weight in sorted({0.0, *settings.sweep}):
        _restore(prepared, untouched)
        _tune_or_load(prepared, weight, folder / POINTS_FOLDER / repr(weight), told)
        points.append(_measure(prepared, weight))
        told.finish(f"λ = {weight:g}: {points[-1].correct} of {base.n} development questions")
    best = best_of(points)
    assert best.weight is not None
    found = Sweep(base, tuple(points), best.weight)
    _restore(prepared, untouched)
    _tune_or_load(prepared, best.weight, folder / POINTS_FOLDER / repr(best.weight), told)
    write_result(prepared, folder)
    write_json(folder / SWEEP_FILE, {**facts(prepared), **found.as_json()})
    told.finish(f"λ = {best.weight:g} chosen, in {result_of(folder, settings)}")
    return found


def best_of(points: Sequence[Point]) -> Point:
    """The one to choose, by the rule of `sweep`."""
    return min(points, key=lambda point: (-point.mean, point.loss, point.weight))


def _tune_or_load(prepared: Prepared, weight: float, folder: Path, progress: Progress) -> None:
    """The gates as this λ tunes them, read back if that was done before."""
    if not (folder / DELTA_FILE).is_file():
        tune(prepared, weight, folder / "checkpoints", progress)
        save_delta(prepared.base, tensors_on_disk(prepared.gates.model, prepared.gates.gates), folder)
    saved, described = load_delta(folder)  # also what was just tuned: in the base's dtypes, as it will be used
    refuse_other_base(prepared.base, folder, saved, described)
    _restore(prepared, [saved[name] for name in prepared.disk_names])


@torch.no_grad()
def _restore(prepared: Prepared, weights: list[Tensor]) -> None:
    for live, kept in zip(prepared.gates.parameters(), weights, strict=True):
        live.copy_(kept)


def _measure(prepared: Prepared, weight: float | None) -> Point:
    said = ask(prepared.gates, prepared.dev_encoded, batch_size=prepared.settings.batch_size, pad_id=prepared.pad_id)
    tasks = [question.task for question in prepared.dev]
    asked, right = Counter(tasks), Counter(task for task, is_right in zip(tasks, said.correct, strict=True) if is_right)
    by_task = {task: (right[task], count) for task, count in asked.items()}
    return Point(weight, int(said.correct.sum()), len(tasks), float(said.loss.mean()), by_task)
