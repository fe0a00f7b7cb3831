"""A cell of the comparison: one method, one task, one seed; its file, and whether that file still says the truth."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionroute.errors import OutputExistsError
from fusionroute.evaluation.compare.lineup import Entry, Shared, fingerprints
from fusionroute.evaluation.compare.settings import CompareSettings, slug
from fusionroute.evaluation.harness.answer_log import AnswerLog
from fusionroute.evaluation.tasks import TaskSettings
from fusionroute.output import write_json

CELLS_FOLDER = "cells"
FORMAT, VERSION = "fusionroute.cell", 1

Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What is to be measured.

    Attributes:
        seed: None where the answers do not depend on it; such a cell stands for all seeds.
    """

    method: str
    entry: Entry
    task: TaskSettings
    seed: int | None

    @property
    def label(self) -> str:
        return f"{self.method} · {self.task.task}" + ("" if self.seed is None else f" · seed {self.seed}")

    def path(self, output: Path) -> Path:
        seed = "any-seed" if self.seed is None else f"seed-{self.seed}"
        return output / CELLS_FOLDER / slug(self.method) / slug(self.task.task) / f"{seed}.json"

    def log_path(self, output: Path) -> Path:
        """Where answers are kept until the cell is whole."""
        return self.path(output).with_suffix(".part.jsonl")


def cells(settings: CompareSettings, drawn: Collection[str] = ()) -> Iterator[Cell]:
    """Every cell, those of one method and seed together, so that its models are loaded once.

    Args:
        drawn: tasks whose answers are sampled, so that every method has another one for each seed.
    """
    for name, entry in settings.methods.items():
        for seed in (None, *settings.seeds):
            at_seed = entry if seed is None else entry.at(seed)
            for task in settings.tasks:
                is_seeded = entry.is_seeded or settings.has_seeded_models or task.task in drawn
                if is_seeded == (seed is not None):
                    yield Cell(name, at_seed, task, seed)


def identity(cell: Cell, settings: CompareSettings, shared: Shared, questions: str) -> Record:
    """All that a cell's answers and costs depend on, as JSON.

    Args:
        questions: names what the task asks and how; see `questions.digest`.

    Raises:
        CheckpointError: a model is not there.
    """
    return {
        "method": cell.entry.conditions(),
        "models": fingerprints(cell.entry, shared),
        "scorer": cell.entry.scored_by(shared),
        "task": cell.task.model_dump(mode="json", exclude={"data"}),
        "questions": questions,
        "prompt": settings.prompt,
        "generation": settings.generation.model_dump(mode="json"),
        "max_batch": settings.max_batch,
        "device": settings.device,
        "dtype": settings.dtype,
        "seed": cell.seed,
    }


def kept(cell: Cell, output: Path, expected: Record) -> bool:
    """Whether the cell was measured before, under the very same conditions.

    Raises:
        OutputExistsError: it was measured, or begun, under others; the first that differs is named.
    """
    path = cell.path(output)
    if not path.is_file():
        _refuse_other(cell.log_path(output), AnswerLog.conditions_of(cell.log_path(output)), expected)
        return False
    _refuse_other(path, read(path)["identity"], expected)
    return True


def _refuse_other(path: Path, found: Record | None, expected: Record) -> None:
    difference = None if found is None else _first_difference(found, json.loads(json.dumps(expected)))
    if difference is not None:
        raise OutputExistsError(
            f"{path} was measured otherwise ({difference}); choose another output folder, or ask for cells that were "
            "measured otherwise to be overwritten"
        )


def drop_outdated(cell: Cell, output: Path, expected: Record) -> None:
    """Remove the cell's files if it was measured under other conditions, or they are none."""
    try:
        kept(cell, output, expected)
    except OutputExistsError:
        cell.path(output).unlink(missing_ok=True)
        cell.log_path(output).unlink(missing_ok=True)


def read(path: Path) -> Record:
    """A finished cell. Raises `OutputExistsError` if the file is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OutputExistsError(f"{path} is not valid JSON ({error}); remove it, and it is measured again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
        raise OutputExistsError(f"{path} is no cell of a comparison by this version; choose another output folder")
    return record


def write(cell: Cell, output: Path, measured: Record) -> None:
    write_json(cell.path(output), {"format": FORMAT, "version": VERSION, **measured})


def _first_difference(found: Any, wanted: Any, place: str = "") -> str | None:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in dict.fromkeys([*found, *wanted]):
            inside = _first_difference(found.get(key), wanted.get(key), f"{place}.{key}" if place else str(key))
            if inside is not None:
                return inside
        return None
    return None if found == wanted else f"{place} was {found!r}, is now {wanted!r}"
