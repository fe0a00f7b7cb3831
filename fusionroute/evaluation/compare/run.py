"""The whole comparison, in one resumable call."""

import functools
import gc
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.task import Task

from fusionroute.environment import git_commit, machine, versions
from fusionroute.errors import FusionRouteError
from fusionroute.evaluation.compare import cells as kept_cells
from fusionroute.evaluation.compare import questions
from fusionroute.evaluation.compare.cells import CELLS_FOLDER, Cell, Record, cells, identity
from fusionroute.evaluation.compare.lineup import Shared
from fusionroute.evaluation.compare.measure import measure
from fusionroute.evaluation.compare.results import results
from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.evaluation.harness.answer_log import AnswerLog
from fusionroute.evaluation.report import write_report
from fusionroute.evaluation.tasks import TaskLibrary, TaskSettings
from fusionroute.output import clear_leftovers, refuse_existing, write_json
from fusionroute.progress import Progress, Silent

RESULTS, REPORT = "results.json", "report.html"
SharedAt = Callable[[int | None], Shared]  # by seed


def compare(
    settings: CompareSettings,
    output: str | Path,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
    report_examples: int = 20,
    command: str = "",
) -> Record:
    """Measure every cell that is missing, then write ``results.json`` and ``report.html`` from all of them.

    A cell that fails is named in the results, and measured again by the next call; the others go on.

    Args:
        output: gets ``cells/method/task/seed.json`` as they are measured, then the results.
        overwrite: measure cells again that were measured under other settings, or on models that have changed since.
        command: how this comparison is made again, for the report.

    Returns:
        What ``results.json`` holds.

    Raises:
        OutputExistsError: ``output`` holds something else, or cells of other settings.
        SettingsError, CheckpointError: before anything is measured, wherever possible.
    """
    output = Path(output)
    if not (output / CELLS_FOLDER).is_dir():
        refuse_existing(output)
    clear_leftovers(output)
    shared = functools.cache(settings.shared)
    library = TaskLibrary(settings.include)
    asked = {
        task.task: _asked(library.load(task, allow_code=settings.allow_code), task, settings) for task in settings.tasks
    }
    wanted = list(cells(settings, [task for task, each in asked.items() if each.are_drawn]))
    for (_, seed), entry in {(cell.method, cell.seed): cell.entry for cell in wanted}.items():
        entry.check(shared(seed))
    missing = _missing(wanted, settings, shared, output, asked, overwrite=overwrite)
    progress = progress or Silent()
    failed = _measure(missing, asked, library, settings, shared, output, progress)
    measured = [kept_cells.read(path) for cell in wanted if (path := cell.path(output)).is_file()]
    record = _record(settings, measured, failed, command)
    write_json(output / RESULTS, record)
    write_report(record, measured, output / REPORT, examples=report_examples)
    return record


@dataclass(frozen=True)
class _Asked:
    """What is known of a task before anything is measured."""

    items: int
    digest: str
    are_drawn: bool


def _asked(tasks: Sequence[Task], task: TaskSettings, settings: CompareSettings) -> _Asked:
    return _Asked(
        questions.count(tasks, task), questions.digest(tasks, task), questions.are_drawn(tasks, settings.generation)
    )


def _missing(
    wanted: Sequence[Cell],
    settings: CompareSettings,
    shared: SharedAt,
    output: Path,
    asked: Mapping[str, _Asked],
    *,
    overwrite: bool,
) -> list[tuple[Cell, Record]]:
    """Cells still to be measured, with what each of them depends on."""
    known = [(cell, identity(cell, settings, shared(cell.seed), asked[cell.task.task].digest)) for cell in wanted]
    if overwrite:
        for cell, expected in known:
            kept_cells.drop_outdated(cell, output, expected)
    return [(cell, expected) for cell, expected in known if not kept_cells.kept(cell, output, expected)]


def _measure(
    missing: Sequence[tuple[Cell, Record]],
    asked: Mapping[str, _Asked],
    library: TaskLibrary,
    settings: CompareSettings,
    shared: SharedAt,
    output: Path,
    progress: Progress,
) -> list[Record]:
    """Measure cell by cell, those of one method and seed on the same loaded models; returns what failed."""
    failed: list[Record] = []
    if not missing:
        return failed
    made = {"commit": git_commit(), "versions": versions(), "machine": machine()}
    progress.start("comparing", sum(asked[cell.task.task].items for cell, _ in missing))
    for _, group in itertools.groupby(missing, key=lambda each: (each[0].method, each[0].seed)):
        of_one = list(group)
        try:
            first = of_one[0][0]
            contestant = first.entry.build(shared(first.seed), first.seed or 0)
        except Exception as error:  # whatever it is, such as a full accelerator, the other methods go on
            for cell, _ in of_one:
                progress.advance(asked[cell.task.task].items, cell.label)
                failed.append(_failure(cell, error))
            _free()
            continue
        for cell, expected in of_one:
            bar = _CellProgress(progress, cell.label, asked[cell.task.task].items)
            try:
                tasks = library.load(cell.task, allow_code=settings.allow_code)
                with AnswerLog(cell.log_path(output), expected) as log:
                    measured = measure(cell, contestant, tasks, settings, log, bar.advance)
                kept_cells.write(cell, output, {**measured, "identity": expected, "date": _now(), **made})
                log.remove()
            except Exception as error:
                failed.append(_failure(cell, error))
            bar.finish()
        del contestant
        _free()
    progress.finish(f"measured {len(missing) - len(failed)} of {len(missing)} cells")
    return failed


class _CellProgress:
    """A cell takes its number of items on the bar, however many requests that is."""

    def __init__(self, progress: Progress, label: str, items: int):
        self.progress, self.label, self.left = progress, label, items

    def advance(self, requests: int) -> None:
        step = min(requests, self.left)
        self.left -= step
        self.progress.advance(step, self.label)

    def finish(self) -> None:
        self.advance(self.left)


def _failure(cell: Cell, error: Exception) -> Record:
    """What users can mend is told in a line; of all else the traceback is logged too."""
    is_ours = isinstance(error, FusionRouteError)
    message = str(error) if is_ours else f"{type(error).__name__}: {error}"
    logging.getLogger(__name__).warning("%s failed: %s", cell.label, message, exc_info=None if is_ours else error)
    return {"method": cell.method, "task": cell.task.task, "seed": cell.seed, "error": message}


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _record(
    settings: CompareSettings, measured: Sequence[Record], failed: list[Record], command: str
) -> dict[str, Any]:
    """The whole of ``results.json``; versions and machine are those of the newest cell, commits those of all."""
    newest = max(measured, key=lambda cell: cell["date"], default={"versions": versions(), "machine": machine()})
    return {
        "format": "fusionroute.comparison",
        "title": settings.title or "Comparison",
        "command": command,
        "commit": ", ".join(sorted({cell["commit"] for cell in measured})) or git_commit(),
        "date": _now(),
        "versions": newest["versions"],
        "machine": newest["machine"],
        "settings": settings.model_dump(mode="json", exclude_unset=True),
        **results(settings, measured),
        "failed": failed,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
