"""Is fusing better than its parts? The demo's comparison, for several routers, with honest intervals.

    python benchmarks/zoo_quality.py             # measure, write benchmarks/results/zoo_quality.json
    python benchmarks/zoo_quality.py --render    # that file as a Markdown table

Experts are the shipped ones; a seed decides the router's head, its training examples and their order. All routers
answer the same test questions. An interrupted measurement goes on where it stopped; a new commit starts anew, but
changes that are not committed do not: remove runs/zoo_quality after them.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console

from fusionroute.environment import git_commit, machine, versions
from fusionroute.errors import FusionRouteError, OutputExistsError
from fusionroute.evaluation.comparison import Comparison
from fusionroute.models.team import TeamModels
from fusionroute.output import write_json
from fusionroute.terminal import RichProgress
from fusionroute.training.run_folder import SFT_FOLDER
from fusionroute.zoo.contest import compare, differences, summary, task_kinds, unseen
from fusionroute.zoo.demo import TEST_COUNT, one_thread
from fusionroute.zoo.team import CDPO, PER_TASK, PREFERENCE_PER_TASK, SFT, train_team

RESULTS = Path("benchmarks/results/zoo_quality.json")
RUNS = Path("runs/zoo_quality")
VERDICTS = "verdicts.json"


def main() -> None:
    options = _options()
    try:
        print(render(json.loads(options.output.read_text()))) if options.render else measure(options)
    except FusionRouteError as error:
        sys.exit(f"error: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one router each")
    parser.add_argument("--per-task", type=int, default=PER_TASK, help="training examples of each task")
    parser.add_argument("--test-count", type=int, default=TEST_COUNT, help="test examples of each task")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=RUNS, help="where routers and verdicts are kept meanwhile")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file")
    parser.add_argument("--render", action="store_true", help="print the output file as Markdown, measure nothing")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> None:
    """Every seed in turn, then one file with all of them."""
    if options.output.exists() and not options.overwrite:
        raise OutputExistsError(f"{options.output} exists; give --overwrite to replace it")
    transformers.logging.disable_progress_bar()
    commit = git_commit()
    with RichProgress(Console(highlight=False)) as progress, one_thread():
        kept = [_measure_seed(seed, options, commit, progress) for seed in options.seeds]
    measured = {seed: Comparison(each["correct"]) for seed, each in zip(options.seeds, kept, strict=True)}
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit,
        "versions": versions(),
        "machine": machine(),
        "wall_seconds": round(sum(each["seconds"] for each in kept), 1),  # also of seeds measured before
        "seeds": options.seeds,
        "per_task": options.per_task,
        "test_count": options.test_count,
        "preference_per_task": PREFERENCE_PER_TASK,
        "sft": SFT,
        "cdpo": CDPO,
        "all_seeds": over_seeds(list(measured.values())),
        "by_seed": {str(seed): summary(comparison) for seed, comparison in measured.items()},
    }
    write_json(options.output, record)
    print(f"{options.output} is written")


def _measure_seed(seed: int, options: argparse.Namespace, commit: str, progress: RichProgress) -> dict[str, Any]:
    folder = options.runs / commit / f"{options.per_task}-per-task-seed-{seed}"
    kept = folder / f"{options.test_count}-{VERDICTS}"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    began = time.monotonic()
    train_team(folder, seed=seed, per_task=options.per_task, progress=progress)
    team, before = (TeamModels.from_pretrained(place, device="cpu") for place in (folder, folder / SFT_FOLDER))
    comparison, _ = compare(team, unseen(options.test_count), progress, before=before)
    measured = {"seconds": time.monotonic() - began, "correct": comparison.correct}
    write_json(kept, measured)
    return measured


def over_seeds(measured: list[Comparison]) -> dict[str, Any]:
    """Means over the routers.

    Intervals are those of the questions (each router answered the same ones); how much routers differ stands beside
    them as the lowest and highest of the seeds.
    """
    pooled = Comparison(
        {
            method: {task: _shares(method, task, measured) for task in measured[0].tasks}
            for method in measured[0].correct
        }
    )
    groups = {
        kind: {
            "tasks": list(tasks),
            "average": {method: _spread(method, tasks, pooled, measured) for method in pooled.correct},
            "differences": {label: asdict(gain) for label, gain in differences(pooled, tasks).items()},
        }
        for kind, tasks in task_kinds().items()
    }
    tasks = {
        task: {method: asdict(pooled.average(method, [task])) for method in pooled.correct} for task in pooled.tasks
    }
    return {"tasks": tasks, "groups": groups}


def _shares(method: str, task: str, measured: list[Comparison]) -> list[float]:
    """For each question, the share of routers with which the method got it right."""
    verdicts = [comparison.correct[method][task] for comparison in measured]
    return [statistics.fmean(answers) for answers in zip(*verdicts, strict=True)]


def _spread(method: str, tasks: tuple[str, ...], pooled: Comparison, measured: list[Comparison]) -> dict[str, float]:
    seeds = [comparison.average(method, tasks).value for comparison in measured]
    return asdict(pooled.average(method, tasks)) | {"lowest_seed": min(seeds), "highest_seed": max(seeds)}


def render(record: dict[str, Any]) -> str:
    """Two Markdown tables and how they were measured."""
    found, used = record["all_seeds"], record["versions"]
    tasks, everything = list(found["tasks"]), found["groups"]["all"]
    accuracy = [
        _row([method, *(_percent(found["tasks"][task][method]["value"]) for task in tasks), _interval(average)])
        for method, average in everything["average"].items()
    ]
    gains = [
        _row([kind.replace("_", " "), label, _interval(gain, sign="+")])
        for kind, group in found["groups"].items()
        for label, gain in group["differences"].items()
    ]
    return "\n".join(
        [
            *_head(["right answers, %", *(task.replace("_", " ") for task in tasks), "average (95 % interval)"]),
            *accuracy,
            "",
            *_head(["tasks", "paired difference", "points (95 % interval)"]),
            *gains,
            "",
            f"Means over {len(record['seeds'])} routers (seeds {', '.join(map(str, record['seeds']))}), "
            f"{record['per_task']} training and {record['test_count']} test examples a task, greedy. "
            f"The best expert is picked on the same questions. fusionroute {used['fusionroute']} ({record['commit']}), "
            f"torch {used['torch']}, transformers {used['transformers']}.",
        ]
    )


def _head(names: list[str]) -> list[str]:
    return [_row(names), _row(["---"] * len(names))]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}z.0f}"


def _interval(estimate: dict[str, float], sign: str = "") -> str:
    value, low, high = (_percent(estimate[key], sign) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    main()
