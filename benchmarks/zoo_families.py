"""SAFE and its hosts on three zoo models with different tokenizers: the comparison of docs/ensembles.md.

    python benchmarks/zoo_families.py train       # three models for every seed
    python benchmarks/zoo_families.py measure     # zoo_families.yaml; writes benchmarks/results/zoo_families.json
    python benchmarks/zoo_families.py render      # that file as Markdown tables

What was interrupted goes on where it stopped. `measure` also leaves every answer and report.html in
runs/zoo_families/results.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from zoo_comparison import AVERAGE, _head, _interval, _row

from fusionroute.errors import FusionRouteError, OutputExistsError
from fusionroute.evaluation.compare.run import compare
from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.output import write_json
from fusionroute.terminal import RichProgress
from fusionroute.zoo.families.build import build_families

CONFIG = Path("benchmarks/zoo_families.yaml")
RESULTS = Path("benchmarks/results/zoo_families.json")
RUNS = Path("runs/zoo_families")


def main() -> None:
    options = _options()
    try:
        if options.part == "render":
            print(render(json.loads(RESULTS.read_text(encoding="utf-8"))))
        elif options.part == "measure":
            measure(overwrite=options.overwrite)
        elif options.seed is not None:
            torch.set_num_threads(1)
            build_families(RUNS / f"seed-{options.seed}", seed=options.seed)
        else:
            train_all(options.workers)
    except FusionRouteError as error:
        sys.exit(f"error: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["train", "measure", "render"])
    parser.add_argument("--workers", type=int, default=2, help="seeds trained at once, one core each")
    parser.add_argument("--seed", type=int, help="train this one alone (what the workers do)")
    parser.add_argument("--overwrite", action="store_true", help="replace the results")
    return parser.parse_args()


def train_all(workers: int) -> None:
    """Every seed in a process of its own."""

    def work(seed: int) -> None:
        command = [sys.executable, __file__, "train", "--seed", str(seed)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        print(f"seed {seed} is done", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, CompareSettings.from_yaml(CONFIG).seeds))


def measure(*, overwrite: bool) -> None:
    """The comparison on one core, so that times of methods are those of the same machine."""
    if RESULTS.exists() and not overwrite:
        raise OutputExistsError(f"{RESULTS} exists; give --overwrite to replace it")
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    settings = CompareSettings.from_yaml(CONFIG)
    with RichProgress(Console(highlight=False)) as progress:
        output = RUNS / "results"
        command = f"fusionroute evaluate {CONFIG} --output {output}"
        record = compare(settings, output, progress=progress, overwrite=overwrite, command=command)
    if record["failed"]:
        raise FusionRouteError(f"{len(record['failed'])} cells failed; the first: {record['failed'][0]}")
    write_json(RESULTS, record)
    print(f"{RESULTS} is written")


def render(record: Mapping[str, Any]) -> str:
    """Markdown tables: quality, E/T and reading; differences to the reference; how they were measured."""
    reference, accuracy = record["reference"], record["accuracy"]
    return "\n".join(
        [
            *_head(["", "right answers, % (95 % interval)", "E/T, %", "kept of drafted, %", "read per token written"]),
            *(_quality_row(name, record) for name in [*record["methods"], *record["bounds"]]),
            "",
            *_head([f"{reference} minus", "points (95 % interval)", "p", "p after Holm"]),
            *(_gain_row(name, gain[AVERAGE]) for name, gain in record["differences"].items()),
            "",
            _made(record, accuracy[reference][AVERAGE]["n"]),
        ]
    )


def _quality_row(name: str, record: Mapping[str, Any]) -> str:
    cost = record["cost"].get(name) or {}
    read = "; ".join(f"{model} {count:.1f}" for model, count in cost.get("tokens_read_per_token", {}).items())
    shares = [_share(cost.get(key)) for key in ("ensembled_per_token", "acceptance")]
    return _row([name, _interval(record["accuracy"][name][AVERAGE]), *shares, read])


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _gain_row(name: str, gain: Mapping[str, float]) -> str:
    return _row([name, _interval(gain, "+"), f"{gain['p']:.4f}", f"{gain['p_adjusted']:.4f}"])


def _made(record: Mapping[str, Any], questions: int) -> str:
    used = record["versions"]
    return (
        f"{questions} questions, {len(record['seeds'])} seeds, greedy. fusionroute {used['fusionroute']} "
        f"({record['commit']}), torch {used['torch']}, transformers {used['transformers']}, lm-eval {used['lm_eval']}."
    )


if __name__ == "__main__":
    main()
