"""What all cells come to: accuracies with intervals, differences with p-values, bounds, cost and usage."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fusionroute.errors import DataError
from fusionroute.evaluation.compare.cost import total_cost
from fusionroute.evaluation.compare.ensembling import ensembling
from fusionroute.evaluation.compare.lineup import SingleEntry
from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.evaluation.compare.usage import usage
from fusionroute.evaluation.statistics import Estimate, crossed_difference, crossed_mean, holm, wilson

AVERAGE = "average"
BEST_EXPERT, ORACLE = "best single expert", "oracle per prompt"

Cells = Sequence[Mapping[str, Any]]
Scores = dict[str, dict[str, np.ndarray]]  # method to task to [seeds, items]; one row where seeds do not matter


def results(settings: CompareSettings, measured: Cells) -> dict[str, Any]:
    """The comparison as JSON, from whatever cells there are.

    A method's average stands only where every task was measured, and so does each difference.
    """
    by_method = {name: [cell for cell in measured if cell["method"] == name] for name in settings.methods}
    found = scores(by_method, settings)
    bounds, winners = _bounds(found, settings)
    costs = {name: total_cost(cells) for name, cells in by_method.items()}
    writers = {name: usage(cells) for name, cells in by_method.items() if settings.methods[name].is_joint}
    ensembled = {name: ensembling(cells) for name, cells in by_method.items()}
    return {
        "seeds": list(settings.seeds),
        "tasks": settings.task_names,
        "metrics": {cell["task"]: cell["metric"] for cell in measured},
        "methods": list(settings.methods),
        "bounds": list(bounds),
        "winners": winners,
        "reference": settings.held_against,
        "accuracy": {name: _accuracies(tasks, settings) for name, tasks in (found | bounds).items()},
        "differences": differences(found, settings.held_against, settings),
        "cost": {name: cost for name, cost in costs.items() if cost is not None},
        "usage": {name: who for name, who in writers.items() if who is not None},
        "ensembling": {name: found for name, found in ensembled.items() if found is not None},
    }


def scores(by_method: Mapping[str, Cells], settings: CompareSettings) -> Scores:
    """Every item's score, one row per seed; tasks of which a seed is missing are left out.

    Raises:
        DataError: two cells of a task were not asked the same questions.
    """
    for task in settings.task_names:
        _refuse_other_questions([cell for cells in by_method.values() for cell in cells if cell["task"] == task])
    found: Scores = {}
    for name, cells in by_method.items():
        found[name] = {}
        for task in settings.task_names:
            of_task = sorted((cell for cell in cells if cell["task"] == task), key=lambda cell: str(cell["seed"]))
            is_complete = any(cell["seed"] is None for cell in of_task) or len(of_task) == len(settings.seeds)
            if of_task and is_complete:
                found[name][task] = np.array([_of_items(cell) for cell in of_task], float)
    return found


def differences(found: Scores, reference: str, settings: CompareSettings) -> dict[str, dict[str, Any]]:
    """The reference minus every other method, on the same items.

    p-values of the averages are corrected together, and so are those of all tasks.
    """
    others = [name for name in found if name != reference]
    compared = {
        (name, task): crossed_difference([_difference(found[reference][task], found[name][task])])
        for name in others
        for task in settings.task_names
        if task in found[name] and task in found[reference]
    }
    averages = {
        name: crossed_difference([_difference(found[reference][task], found[name][task]) for task in found[name]])
        for name in others
        if _is_whole(found[name], settings) and _is_whole(found[reference], settings)
    }
    of_tasks = holm({f"{name}\n{task}": each.p for (name, task), each in compared.items()})
    of_averages = holm({name: each.p for name, each in averages.items()})
    return {
        name: {
            task: asdict(compared[name, task]) | {"p_adjusted": of_tasks[f"{name}\n{task}"]}
            for task in settings.task_names
            if (name, task) in compared
        }
        | ({AVERAGE: asdict(averages[name]) | {"p_adjusted": of_averages[name]}} if name in averages else {})
        for name in others
    }


def _bounds(found: Scores, settings: CompareSettings) -> tuple[Scores, dict[str, str]]:
    """The best expert, picked on these very items, and an oracle that picks one for each prompt.

    Only where every expert of the file was measured alone on every task: the best of some of them bounds nothing.
    """
    alone = {entry.expert: name for name, entry in settings.methods.items() if isinstance(entry, SingleEntry)}
    experts = [alone[name] for name in settings.experts if name in alone and _is_whole(found[alone[name]], settings)]
    if len(experts) < max(2, len(settings.experts)):
        return {}, {}
    best = max(experts, key=lambda name: crossed_average(found[name]))
    oracle = {task: np.max([found[name][task] for name in experts], axis=0) for task in settings.task_names}
    return {BEST_EXPERT: found[best], ORACLE: oracle}, {BEST_EXPERT: best}


def _refuse_other_questions(cells: Cells) -> None:
    """Scores are paired by position, so position must mean the same question everywhere."""
    for cell in cells[1:]:
        for at, (mine, theirs) in enumerate(itertools.zip_longest(_asked(cells[0]), _asked(cell))):
            if mine != theirs:
                raise DataError(
                    f"{cells[0]['method']} and {cell['method']} were asked different questions in {cell['task']} "
                    f"(first at number {at}); measure one of them again"
                )


def crossed_average(tasks: Mapping[str, np.ndarray]) -> float:
    return float(np.mean([each.mean() for each in tasks.values()]))


def _accuracies(tasks: Mapping[str, np.ndarray], settings: CompareSettings) -> dict[str, Any]:
    row = {task: _estimate([values]) for task, values in tasks.items()}
    if _is_whole(tasks, settings):
        row[AVERAGE] = _estimate(list(tasks.values()))
    return row


def _estimate(groups: Sequence[np.ndarray]) -> dict[str, Any]:
    runs = max(len(group) for group in groups)
    groups = [np.broadcast_to(group, (runs, group.shape[1])) for group in groups]
    estimate = _of_verdicts(groups[0]) if len(groups) == 1 and _are_verdicts(groups[0]) else crossed_mean(groups)
    return asdict(estimate) | {"seeds": runs}


def _are_verdicts(values: np.ndarray) -> bool:
    """Right or wrong, and every seed the same: then the questions are all there is to count."""
    return bool(np.isin(values, (0, 1)).all() and (values == values[0]).all())


def _of_verdicts(values: np.ndarray) -> Estimate:
    return wilson(int(values[0].sum()), values.shape[1])


def _is_whole(tasks: Mapping[str, np.ndarray], settings: CompareSettings) -> bool:
    return list(tasks) == settings.task_names


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``[seeds, items]``; one row of either stands for every seed of the other."""
    return first - second


def _asked(cell: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(each["prompt"], each["target"]) for each in cell["examples"]]


def _of_items(cell: Mapping[str, Any]) -> list[float]:
    return [each["score"] for each in cell["examples"]]
