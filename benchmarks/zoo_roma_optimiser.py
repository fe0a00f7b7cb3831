"""How long and how fast to tune the gates in `zoo_roma.py`: chosen on development questions, for λ = 0 and 1 alike.

    python benchmarks/zoo_roma_optimiser.py --output benchmarks/results/zoo_roma_optimiser.json
    python benchmarks/zoo_roma_optimiser.py --render benchmarks/results/zoo_roma_optimiser.json

For every learning rate and number of steps, the share of development questions that is answered by gates tuned with
λ = 0 and with λ = 1, over the first seeds. The pair with the best mean over both λ is what the comparison uses.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from zoo_roma import FAMILIES, NEVER_SAVED, OPTIMISER, RUNS, Workshop

from fusionroute.environment import git_commit, versions
from fusionroute.moe.roma.sweep import sweep
from fusionroute.output import write_json

CHOICES = ((1e-2, 200), (1e-2, 800), (3e-2, 200), (3e-2, 400), (3e-2, 800), (1e-1, 400))
WEIGHT = 1.0
CHOICE_SEEDS = (0, 1, 2)


def one_seed(seed: int) -> None:
    shop = Workshop(FAMILIES[0], seed)
    for rate, steps in CHOICES:
        optimiser = {**OPTIMISER, **NEVER_SAVED, "learning_rate": rate, "max_steps": steps}
        settings = shop.settings(optimiser=optimiser, sweep=[WEIGHT])
        found = sweep(settings, folder_of(seed) / f"{rate:g}-{steps}").as_json()
        write_json(file_of(seed, rate, steps), found)
        shares = {point["weight"]: round(point["mean_of_tasks"], 3) for point in found["points"]}
        print(f"seed {seed}, {steps} steps at {rate:g}: {shares}", flush=True)


def folder_of(seed: int) -> Path:
    return RUNS / "optimiser" / f"{FAMILIES[0]}-{seed}"


def file_of(seed: int, rate: float, steps: int) -> Path:
    return folder_of(seed) / f"{rate:g}-{steps}.json"


def gathered() -> dict[str, Any]:
    rows = []
    for rate, steps in CHOICES:
        seeds = [json.loads(file_of(seed, rate, steps).read_text()) for seed in CHOICE_SEEDS]
        points = {
            f"λ = {index and WEIGHT:g}": [found["points"][index]["mean_of_tasks"] for found in seeds]
            for index in (0, 1)
        }
        base = [found["base"]["mean_of_tasks"] for found in seeds]
        rows.append({"learning_rate": rate, "max_steps": steps, "base": base, **points})
    best = max(rows, key=lambda row: np.mean([row[name] for name in row if name.startswith("λ")]))
    chosen = {name: best[name] for name in ("learning_rate", "max_steps")}
    made = {"versions": versions(), "commit": git_commit(), "family": FAMILIES[0], "seeds": list(CHOICE_SEEDS)}
    return {**made, "chosen": chosen, "rows": rows}


def render(found: dict[str, Any]) -> str:
    lines = ["| learning rate | steps | base, % | λ = 0, % | λ = 1, % |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        shares = [f"{100 * np.mean(row[name]):.1f}" for name in ("base", "λ = 0", f"λ = {WEIGHT:g}")]
        lines.append("| " + " | ".join([f"{row['learning_rate']:g}", str(row["max_steps"]), *shares]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--render", type=Path, help="print a finished result as a table")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--workers", type=int, default=2, help="seeds at once, one core each")
    parser.add_argument("--seed", type=int, help="this one alone (what the workers do)")
    options = parser.parse_args()
    if options.render:
        print(render(json.loads(options.render.read_text())))
        return
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    if options.seed is not None:
        one_seed(options.seed)
        return
    if options.output is None or (options.output.exists() and not options.overwrite):
        parser.error("give --output FILE; a file that exists needs --overwrite")
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(_in_a_process, CHOICE_SEEDS))
    found = gathered()
    write_json(options.output, found)
    print(render(found), f"\n\nwritten to {options.output}")


def _in_a_process(seed: int) -> None:
    subprocess.run(
        [sys.executable, __file__, "--seed", str(seed)], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True
    )


if __name__ == "__main__":
    main()
