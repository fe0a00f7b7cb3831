"""The whole comparison, in one resumable call."""

import gc
import itertools
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.task import Task
from rich.console import Console

from fusionroute.environment import git_commit, machine, versions
from fusionroute.errors import FusionRouteError
from fusionroute.evaluation.answer_log import AnswerLog
from fusionroute.evaluation.compare import cells as kept_cells
from fusionroute.evaluation.compare.cells import Cell, Record, cells, identity
from fusionroute.evaluation.compare.lineup import Shared
from fusionroute.evaluation.compare.measure import measure
from fusionroute.evaluation.compare.results import results
from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.evaluation.report import write_report
from fusionroute.evaluation.tasks import TaskLibrary, TaskSettings
from fusionroute.output import clear_leftovers, write_json
from fusionroute.terminal import RichProgress

RESULTS, REPORT = "results.json", "report.html"


def compare(
    settings: CompareSettings,
    output: str | Path,
    *,
    progress: RichProgress | None = None,
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
        OutputExistsError: ``output`` has cells of other settings.
        SettingsError, CheckpointError: before anything is measured, wherever possible.
    """
    output = Path(output)
    clear_leftovers(output)
    shared = Shared(settings.experts, settings.base, settings.scorer, settings.prompt, settings.device, settings.dtype)
    library = TaskLibrary(settings.include)
    items = {task.task: _items(library.load(task, allow_code=settings.allow_code), task) for task in settings.tasks}
    missing = _missing(settings, shared, output, overwrite=overwrite)
    failed = _measure(missing, items, library, settings, shared, output, progress or RichProgress(Console(quiet=True)))
    measured = [kept_cells.read(path) for cell in cells(settings) if (path := cell.path(output)).is_file()]
    record = _record(settings, results(settings, measured), failed, command)
    write_json(output / RESULTS, record)
    write_report(record, measured, output / REPORT, examples=report_examples)
    return record


def _missing(settings: CompareSettings, shared: Shared, output: Path, *, overwrite: bool) -> list[tuple[Cell, Record]]:
    """Cells still to be measured, with what each of them depends on."""
    wanted = [(cell, identity(cell, settings, shared)) for cell in cells(settings)]
    if overwrite:
        for cell, expected in wanted:
            kept_cells.drop_outdated(cell, output, expected)
    return [(cell, expected) for cell, expected in wanted if not kept_cells.kept(cell, output, expected)]


def _measure(
    missing: Sequence[tuple[Cell, Record]],
    items: Mapping[str, int],
    library: TaskLibrary,
    settings: CompareSettings,
    shared: Shared,
    output: Path,
    progress: RichProgress,
) -> list[Record]:
    """Measure cell by cell, those of one method and seed on the same loaded models; returns what failed."""
    failed: list[Record] = []
    if not missing:
        return failed
    made = {"commit": git_commit(), "versions": versions(), "machine": machine()}
    progress.start("comparing", sum(items[cell.task.task] for cell, _ in missing))
    for _, group in itertools.groupby(missing, key=lambda each: (each[0].method, each[0].seed)):
        of_one = list(group)
        try:
            contestant = of_one[0][0].entry.build(shared, of_one[0][0].seed or 0)
        except FusionRouteError as error:
            for cell, _ in of_one:
                progress.advance(items[cell.task.task], cell.label)
                failed.append(_failure(cell, error))
            continue
        for cell, expected in of_one:
            bar = _CellProgress(progress, cell.label, items[cell.task.task])
            try:
                tasks = library.load(cell.task, allow_code=settings.allow_code)
                with AnswerLog(cell.log_path(output), expected) as log:
                    measured = measure(cell, contestant, tasks, settings, log, bar.advance)
                kept_cells.write(cell, output, {**measured, "identity": expected, "date": _now(), **made})
                log.remove()
            except FusionRouteError as error:
                failed.append(_failure(cell, error))
            bar.finish()
        del contestant
        _free()
    progress.finish(f"measured {len(missing) - len(failed)} of {len(missing)} cells")
    return failed


class _CellProgress:
    """A cell takes its number of items on the bar, however many requests that is."""

    def __init__(self, progress: RichProgress, label: str, items: int):
        self.progress, self.label, self.left = progress, label, items

    def advance(self, requests: int) -> None:
        step = min(requests, self.left)
        self.left -= step
        self.progress.advance(step, self.label)

    def finish(self) -> None:
        self.advance(self.left)


def _items(tasks: Sequence[Task], settings: TaskSettings) -> int:
    counts = [len(task.eval_docs) for task in tasks]
    return sum(count if settings.limit is None else min(settings.limit, count) for count in counts)


def _failure(cell: Cell, error: FusionRouteError) -> Record:
    logging.getLogger(__name__).warning("%s failed: %s", cell.label, error)
    return {"method": cell.method, "task": cell.task.task, "seed": cell.seed, "error": str(error)}


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _record(settings: CompareSettings, found: Record, failed: list[Record], command: str) -> dict[str, Any]:
    return {
        "format": "fusionroute.comparison",
        "title": settings.title or "Comparison",
        "command": command,
        "commit": git_commit(),
        "date": _now(),
        "versions": versions(),
        "machine": machine(),
        "settings": settings.model_dump(mode="json", exclude_unset=True),
        **found,
        "failed": failed,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
