"""SAFE and its hosts on three zoo models with different tokenizers: the comparison of docs/ensembles.md.

    python benchmarks/zoo_families.py train       # three models for every seed
    python benchmarks/zoo_families.py measure     # zoo_families.yaml; writes benchmarks/results/zoo_families.json
    python benchmarks/zoo_families.py render      # that file as Markdown tables

What was interrupted goes on where it stopped. `measure` also leaves every answer and report.html in
runs/zoo_families/results.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from zoo_comparison import AVERAGE, gain_row, head, interval, measure, parsed_options, row, train_all

from fusionroute.errors import FusionRouteError
from fusionroute.zoo.families.build import build_families

CONFIG = Path("benchmarks/zoo_families.yaml")
RESULTS = Path("benchmarks/results/zoo_families.json")
RUNS = Path("runs/zoo_families")


def main() -> None:
    options = parsed_options((__doc__ or "").splitlines()[0])
    try:
        if options.part == "render":
            print(render(json.loads(RESULTS.read_text(encoding="utf-8"))))
        elif options.part == "measure":
            measure(CONFIG, RUNS / "results", RESULTS, overwrite=options.overwrite)
        elif options.seed is not None:
            torch.set_num_threads(1)
            build_families(RUNS / f"seed-{options.seed}", seed=options.seed)
        else:
            train_all(__file__, CONFIG, options.workers)
    except FusionRouteError as error:
        sys.exit(f"error: {error}")


def render(record: Mapping[str, Any]) -> str:
    """Markdown tables: quality, E/T and reading; differences to the reference; how they were measured."""
    reference, accuracy = record["reference"], record["accuracy"]
    return "\n".join(
        [
            *head(["", "right answers, % (95 % interval)", "E/T, %", "kept of drafted, %", "read per token written"]),
            *(_quality_row(name, record) for name in [*record["methods"], *record["bounds"]]),
            "",
            *head([f"{reference} minus", "points (95 % interval)", "p", "p after Holm"]),
            *(gain_row(name, gain[AVERAGE]) for name, gain in record["differences"].items()),
            "",
            _made(record, accuracy[reference][AVERAGE]["n"]),
        ]
    )


def _quality_row(name: str, record: Mapping[str, Any]) -> str:
    cost = record["cost"].get(name) or {}
    read = "; ".join(f"{model} {count:.1f}" for model, count in cost.get("tokens_read_per_token", {}).items())
    shares = [_share(cost.get(key)) for key in ("ensembled_per_token", "acceptance")]
    return row([name, interval(record["accuracy"][name][AVERAGE]), *shares, read])


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _made(record: Mapping[str, Any], questions: int) -> str:
    used = record["versions"]
    return (
        f"{questions} questions, {len(record['seeds'])} seeds, greedy. fusionroute {used['fusionroute']} "
        f"({record['commit']}), torch {used['torch']}, transformers {used['transformers']}, lm-eval {used['lm_eval']}."
    )


if __name__ == "__main__":
    main()
