"""Every way of combining the zoo's models, on the same questions: the comparison of docs/evaluation.md.

    python benchmarks/zoo_comparison.py train       # a team and a fine-tuned model for every seed
    python benchmarks/zoo_comparison.py measure     # zoo_comparison.yaml; writes benchmarks/results/zoo_comparison.json
    python benchmarks/zoo_comparison.py render      # that file as Markdown tables

Experts are the shipped ones; a seed decides the router's head, its training examples and their order. What was
interrupted goes on where it stopped. `measure` also leaves every answer and report.html in runs/zoo_comparison/results.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transformers
from rich.console import Console

from fusionroute.errors import FusionRouteError, OutputExistsError
from fusionroute.evaluation.compare.run import compare
from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.output import write_json
from fusionroute.terminal.progress import RichProgress
from fusionroute.training.run import train
from fusionroute.training.run_folder import PAIRS_FILE, is_finished
from fusionroute.training.settings import TrainSettings
from fusionroute.zoo.contest import task_kinds
from fusionroute.zoo.team import team_settings, train_team

CONFIG = Path("benchmarks/zoo_comparison.yaml")
RESULTS = Path("benchmarks/results/zoo_comparison.json")
RUNS = Path("runs/zoo_comparison")
AVERAGE = "average"


def main() -> None:
    options = parsed_options((__doc__ or "").splitlines()[0])
    try:
        if options.part == "render":
            print(render(json.loads(RESULTS.read_text(encoding="utf-8"))))
        elif options.part == "measure":
            measure(CONFIG, RUNS / "results", RESULTS, overwrite=options.overwrite)
        elif options.seed is not None:
            train_seed(options.seed)
        else:
            train_all(__file__, CONFIG, options.workers)
    except FusionRouteError as error:
        sys.exit(f"error: {error}")


def parsed_options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("part", choices=["train", "measure", "render"])
    parser.add_argument("--workers", type=int, default=2, help="seeds trained at once, one core each")
    parser.add_argument("--seed", type=int, help="train this one alone (what the workers do)")
    parser.add_argument("--overwrite", action="store_true", help="replace the results")
    return parser.parse_args()


def train_all(script: str, config: Path, workers: int) -> None:
    """Every seed of a comparison in a process of its own, which calls ``script`` again."""

    def work(seed: int) -> None:
        command = [sys.executable, script, "train", "--seed", str(seed)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, CompareSettings.from_yaml(config).seeds))


def train_seed(seed: int) -> None:
    """The team by the whole recipe, then one plain model on the same data, pairs and steps."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    team, plain = RUNS / f"team-{seed}", RUNS / f"fine-tuned-{seed}"
    with RichProgress(Console(highlight=False)) as progress:
        train_team(team, seed=seed, progress=progress)
        if not is_finished(plain):
            train(fine_tuned_settings(team, seed), plain, progress=progress)


def fine_tuned_settings(team: Path, seed: int) -> TrainSettings:
    """The team's own settings for one plain model, which learns from the pairs that the team has made."""
    values = team_settings(team, seed=seed).model_dump()
    values["data"]["pairs"] = str((team / PAIRS_FILE).resolve())
    return TrainSettings.parse(values | {"method": "fine_tuned", "pairs": None})


def measure(config: Path, output: Path, results: Path, *, overwrite: bool) -> None:
    """A comparison on one core, so that times of methods are those of the same machine."""
    if results.exists() and not overwrite:
        raise OutputExistsError(f"{results} exists; give --overwrite to replace it")
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    settings = CompareSettings.from_yaml(config)
    with RichProgress(Console(highlight=False)) as progress:
        command = f"fusionroute evaluate {config} --output {output}"
        record = compare(settings, output, progress=progress, overwrite=overwrite, command=command)
    if record["failed"]:
        raise FusionRouteError(f"{len(record['failed'])} cells failed; the first: {record['failed'][0]}")
    write_json(results, record)
    print(f"{results} is written")


def render(record: Mapping[str, Any]) -> str:
    """Markdown tables (quality by kind of task and by task, differences, cost) and how they were measured."""
    accuracy, tasks, reference = record["accuracy"], record["tasks"], record["reference"]
    order = sorted(record["methods"], key=lambda method: -accuracy[method][AVERAGE]["value"])
    base = record["cost"][reference]["seconds_per_token"]
    columns = [task.removeprefix("zoo_").replace("_", " ") for task in tasks]
    return "\n".join(
        [
            *head(["right answers, %", "one expert's tasks", "mixed", "unknown", "average (95 % interval)"]),
            *(_kinds_row(name, accuracy[name]) for name in [*order, *record["bounds"]]),
            "",
            *head(["right answers, %", *columns, "average (95 % interval)"]),
            *(_quality_row(name, accuracy[name], tasks) for name in [*order, *record["bounds"]]),
            "",
            *head([f"{reference} minus", "points (95 % interval)", "p", "p after Holm"]),
            *(gain_row(name, record["differences"][name][AVERAGE]) for name in order if name != reference),
            "",
            *head(["method", "tokens read per token written", "by model", "time per token", "weights + cache, MiB"]),
            *(_cost_row(name, record["cost"][name], base) for name in order),
            "",
            _made(record, accuracy[reference][AVERAGE]["n"]),
        ]
    )


def _made(record: Mapping[str, Any], questions: int) -> str:
    used = record["versions"]
    return (
        f"{questions} questions, {len(record['seeds'])} seeds where a seed makes a difference, greedy, up to "
        f"{record['cost'][record['reference']]['batch']} at once. Times are ratios to {record['reference']}'s within "
        f"the run. The best expert is picked on the same questions. fusionroute {used['fusionroute']} "
        f"({record['commit']}), torch {used['torch']}, transformers {used['transformers']}, lm-eval {used['lm_eval']}."
    )


def _kinds_row(name: str, found: Mapping[str, Any]) -> str:
    kinds = {kind: tasks for kind, tasks in task_kinds().items() if kind != "all"}
    means = [fmean(found[f"zoo_{task}"]["value"] for task in tasks) for tasks in kinds.values()]
    return row([name, *map(_percent, means), interval(found[AVERAGE])])


def _quality_row(name: str, found: Mapping[str, Any], tasks: Sequence[str]) -> str:
    return row([name, *(_percent(found[task]["value"]) for task in tasks), interval(found[AVERAGE])])


def gain_row(name: str, gain: Mapping[str, float]) -> str:
    return row([name, interval(gain, "+"), f"{gain['p']:.4f}", f"{gain['p_adjusted']:.4f}"])


def _cost_row(name: str, cost: Mapping[str, Any], base: float) -> str:
    read = cost["tokens_read_per_token"]
    each = ", ".join(f"{model} {count:.2f}" for model, count in read.items())
    memory = (cost["peak_memory"]["weights"] + cost["peak_memory"]["cache"]) / 2**20
    time = f"{cost['seconds_per_token'] / base:.2f}"
    return row([name, f"{sum(read.values()):.2f}", each if len(read) > 1 else "", time, f"{memory:.1f}"])


def head(names: list[str]) -> list[str]:
    return [row(names), row(["---"] * len(names))]


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}z.0f}"


def interval(estimate: Mapping[str, float], sign: str = "") -> str:
    value, low, high = (_percent(estimate[key], sign) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    main()
