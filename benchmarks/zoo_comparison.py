"""Every way of combining the zoo's models, on the same questions: the comparison of docs/evaluation.md.

    python benchmarks/zoo_comparison.py train       # a team and a fine-tuned model for every seed

Experts are the shipped ones; a seed decides the router's head, its training examples and their order. Training that
was interrupted goes on where it stopped.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers
from rich.console import Console

from fusionroute.errors import FusionRouteError
from fusionroute.terminal import RichProgress
from fusionroute.training.run import train
from fusionroute.training.run_folder import PAIRS_FILE, is_finished
from fusionroute.training.settings import TrainSettings
from fusionroute.zoo.team import team_settings, train_team

SEEDS = (0, 1, 2, 3, 4)
RUNS = Path("runs/zoo_comparison")


def main() -> None:
    options = _options()
    try:
        train_seed(options.seed, options.runs) if options.seed is not None else train_all(options.runs, options.workers)
    except FusionRouteError as error:
        sys.exit(f"error: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["train"])
    parser.add_argument("--runs", type=Path, default=RUNS, help="where trained models are kept")
    parser.add_argument("--workers", type=int, default=2, help="seeds trained at once, one core each")
    parser.add_argument("--seed", type=int, help="train this one alone (what the workers do)")
    return parser.parse_args()


def train_all(runs: Path, workers: int) -> None:
    """Every seed in a process of its own."""

    def work(seed: int) -> None:
        command = [sys.executable, __file__, "train", "--runs", str(runs), "--seed", str(seed)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, SEEDS))


def train_seed(seed: int, runs: Path) -> None:
    """The team by the whole recipe, then one plain model on the same data, pairs and steps."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    team, plain = runs / f"team-{seed}", runs / f"fine-tuned-{seed}"
    with RichProgress(Console(highlight=False)) as progress:
        train_team(team, seed=seed, progress=progress)
        if not is_finished(plain):
            train(fine_tuned_settings(team, seed), plain, progress=progress)


def fine_tuned_settings(team: Path, seed: int) -> TrainSettings:
    """The team's own settings for one plain model, which learns from the pairs that the team has made."""
    values = team_settings(team, seed=seed).model_dump()
    values["data"]["pairs"] = str((team / PAIRS_FILE).resolve())
    return TrainSettings.parse(values | {"method": "fine_tuned", "pairs": None})


if __name__ == "__main__":
    main()
