"""What each ingredient of training is worth: the arms of ablation.yaml, every one with every seed, on the zoo.

    python benchmarks/ablation.py             # measure, write benchmarks/results/ablation.json
    python benchmarks/ablation.py --render    # that file as a Markdown table, and docs/images/ablation.svg

A seed decides the router's head, its examples, their order and the prompts that mistakes are made on; experts are the
shipped ones, and all arms answer the same test questions. An interrupted measurement goes on where it stopped; a new
commit starts anew.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from datasets import concatenate_datasets
from rich.console import Console

from fusionroute.engine.engine import Engine
from fusionroute.environment import git_commit, machine, versions
from fusionroute.errors import FusionRouteError, OutputExistsError
from fusionroute.evaluation.statistics import Estimate, crossed_mean
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.single import Single
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.router import Router
from fusionroute.models.team import TeamModels, write_team
from fusionroute.models.vocabulary import ROUTER
from fusionroute.output import new_folder, write_json, write_text
from fusionroute.terminal.progress import RichProgress
from fusionroute.training import run
from fusionroute.training.arguments import sft_config
from fusionroute.training.pairs.make import make_pairs
from fusionroute.training.pairs.writer import expert_writer
from fusionroute.training.scoring.scores import load_scores
from fusionroute.training.settings import SFTSettings, TrainSettings
from fusionroute.training.stages import team_file
from fusionroute.training.trainers.cdpo import Mixture
from fusionroute.training.trainers.sft import SFTTrainer
from fusionroute.zoo.build import weights_folder
from fusionroute.zoo.contest import DECODING, task_kinds, unseen
from fusionroute.zoo.tasks import check
from fusionroute.zoo.team import EXPERTS, ROUTER_START, team_settings, write_data

CONFIG = Path("benchmarks/ablation.yaml")
RESULTS = Path("benchmarks/results/ablation.json")
PICTURE = Path("docs/images/ablation.svg")
RUNS = Path("runs/ablation")
BASE = "base"  # the run without changes, which lends the others its scores, its router of stage 1 and its pairs

Arm = dict[str, Any]
Verdicts = dict[str, list[bool]]  # by task


def main() -> None:
    options = _options()
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    try:
        if options.render:
            record = json.loads(RESULTS.read_text(encoding="utf-8"))
            draw(record, PICTURE)
            print(render(record))
        elif options.seed is not None:
            measure_seed(config, options.seed, options.runs)
        else:
            measure(config, options)
    except FusionRouteError as error:
        sys.exit(f"error: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--runs", type=Path, default=RUNS / git_commit(), help="where arms are kept meanwhile")
    parser.add_argument("--workers", type=int, default=2, help="seeds measured at once, one core each")
    parser.add_argument("--overwrite", action="store_true", help="replace the results")
    parser.add_argument("--render", action="store_true", help="print and draw the results, measure nothing")
    parser.add_argument("--seed", type=int, help="measure this one alone (what the workers do)")
    return parser.parse_args()


def measure(config: dict[str, Any], options: argparse.Namespace) -> None:
    """Every seed in a process of its own, then one file with all of them."""
    if RESULTS.exists() and not options.overwrite:
        raise OutputExistsError(f"{RESULTS} exists; give --overwrite to replace it")

    def work(seed: int) -> None:
        command = [sys.executable, __file__, "--config", options.config, "--runs", options.runs, "--seed", str(seed)]
        subprocess.run(list(map(str, command)), env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(work, config["seeds"]))
    write_json(RESULTS, _record(config, options.runs))
    print(f"{RESULTS} is written")


def measure_seed(config: dict[str, Any], seed: int, runs: Path) -> None:
    """Train and ask every arm of one seed; verdicts that are there are not measured again."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    folder = runs / f"seed-{seed}"
    write_data(folder, config["per_task"], config["preference_per_task"], seed)
    with RichProgress(Console(highlight=False)) as progress:
        for name, arm in config["arms"].items():
            kept = folder / f"{_slug(name)}.json"
            if kept.is_file():
                continue
            began = time.monotonic()
            trained, logs = train_arm(name, arm, folder, seed, progress)
            seconds = time.monotonic() - began
            write_json(kept, {"seconds": seconds, "logs": logs, "correct": ask(arm, trained, config["test_count"])})
            progress.finish(f"seed {seed}, {name}: trained in {seconds:.0f} s")


def train_arm(
    name: str, arm: Arm, seed_folder: Path, seed: int, progress: RichProgress
) -> tuple[Path, list[dict[str, float]]]:
    """The arm's team folder, and what its last stage logged."""
    is_base = not {"routing", "router", "sft", "layers", "cdpo", "pairs"} & arm.keys()
    folder = seed_folder / (BASE if is_base else _slug(name))
    settings = arm_settings(arm, seed_folder, seed, progress)
    if arm.get("learn") == "chosen":
        return learn_chosen(settings, seed_folder / BASE, seed_folder / _slug(name))
    if is_base:
        run.score(settings, folder, progress=progress)
    elif not folder.exists():
        _borrow(seed_folder / BASE, folder, _lent(arm))
    stage = run.sft if arm["stage"] == 1 else run.cdpo
    trained = stage(settings, folder, progress=progress)
    checkpoints = folder / "checkpoints" / ("sft" if arm["stage"] == 1 else "cdpo")
    (state,) = checkpoints.glob("checkpoint-*/trainer_state.json")
    return trained, [log for log in json.loads(state.read_text())["log_history"] if "loss" in log]


def arm_settings(arm: Arm, seed_folder: Path, seed: int, progress: RichProgress) -> TrainSettings:
    """The demo's settings with the arm's changes."""
    values = team_settings(seed_folder, seed=seed).model_dump(mode="json")
    for section in ("routing", "router", "sft", "cdpo"):
        values[section] |= arm.get(section, {})
    if "layers" in arm:
        values["router"]["init"] = str(shallow_start(seed_folder.parent / "shallow", arm["layers"]))
    if "pairs" in arm:
        values["data"]["pairs"] = str(off_policy_pairs(seed_folder, seed, progress))
        values["pairs"] = None
    return TrainSettings.parse(values)


def _lent(arm: Arm) -> list[str]:
    if arm["stage"] == 1:
        return ["settings.yaml", "scores"]
    return ["settings.yaml", "scores", "sft", *([] if "pairs" in arm else ["pairs.jsonl"])]


def _borrow(base: Path, folder: Path, parts: list[str]) -> None:
    with new_folder(folder) as target:
        for part in parts:
            copy = shutil.copytree if (base / part).is_dir() else shutil.copy
            copy(base / part, target / part)


def shallow_start(folder: Path, layers: int) -> Path:
    """The router's usual beginning with its first layers alone: a router smaller than its experts."""
    if not folder.exists():
        model = load_model(str(weights_folder(ROUTER_START)))
        del model.get_decoder().layers[layers:]
        model.config.num_hidden_layers = layers
        with new_folder(folder) as target:
            model.save_pretrained(target)
            load_tokenizer(str(weights_folder(ROUTER_START))).save_pretrained(target)
    return folder.resolve()


def off_policy_pairs(seed_folder: Path, seed: int, progress: RichProgress) -> Path:
    """As many pairs as the team's own mistakes gave, but of single experts' mistakes on the same prompts."""
    output, base = seed_folder / "off-policy.jsonl", seed_folder / BASE
    if output.exists():
        return output.resolve()
    team = TeamModels.from_pretrained(base / "sft", device="cpu")
    settings = team_settings(seed_folder, seed=seed).pairs
    assert settings is not None
    made: list[str] = []
    for name in EXPERTS:
        part = seed_folder / f"off-policy-{name}.jsonl"
        make_pairs(expert_writer(team, name), settings, part, overwrite=True, progress=progress)
        made += part.read_text(encoding="utf-8").splitlines()
    wanted = len((base / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
    drawn = np.random.default_rng(seed).permutation(len(made))[:wanted]
    write_text(output, "".join(made[at] + "\n" for at in drawn))
    return output.resolve()


def learn_chosen(settings: TrainSettings, base: Path, folder: Path) -> tuple[Path, list[dict[str, float]]]:
    """The mixture of stage 2, at its rate, but with the chosen answers learned as examples: no preference at all."""
    assert settings.cdpo is not None
    names = list(settings.experts)
    examples, pairs = load_scores(base / "scores", names), load_scores(base / "pair_scores", names)
    chosen = pairs.select(range(0, len(pairs), 2))
    drawn = Mixture(examples, pairs, len(chosen), settings.seed).drawn
    data = concatenate_datasets([examples.select(drawn), chosen]).flatten_indices()
    stage = SFTSettings(**settings.cdpo.model_dump(include=set(SFTSettings.model_fields)))
    arguments = sft_config(settings.model_copy(update={"sft": stage}), folder / "checkpoints")
    router = Router.from_pretrained(base / "sft" / "router", dtype=settings.router.dtype, device="cpu")
    trainer = SFTTrainer(router, arguments, data, experts=names)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    write_team(folder, router, load_tokenizer(settings.router.reference), team_file(settings))
    return folder, [log for log in trainer.state.log_history if "loss" in log]


def ask(arm: Arm, folder: Path, count: int) -> Verdicts:
    """Greedy answers to the test questions, checked."""
    team = TeamModels.from_pretrained(folder, device="cpu")
    test = unseen(count)
    items = [example for drawn in test.values() for example in drawn]
    fused = FusionRoute(team, complement=arm.get("complement", True))
    engine = Engine(Single(team.router, ROUTER) if arm.get("alone") else fused, team.tokenizer)
    answers = engine.generate([team.prompt_format.encode(example.prompt) for example in items], DECODING)
    correct = iter(check(items, [answer.text for answer in answers]))
    return {task: [next(correct) for _ in drawn] for task, drawn in test.items()}


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-")


def _record(config: dict[str, Any], runs: Path) -> dict[str, Any]:
    kept = {
        name: [json.loads((runs / f"seed-{seed}" / f"{_slug(name)}.json").read_text()) for seed in config["seeds"]]
        for name in config["arms"]
    }
    verdicts = {name: [each["correct"] for each in of_seeds] for name, of_seeds in kept.items()}
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": git_commit(),
        "versions": versions(),
        "machine": machine(),
        "config": config,
        "arms": {
            name: {
                "seconds": [round(each["seconds"], 1) for each in kept[name]],
                "average": compare(verdicts[name]),
                "difference": compare(verdicts[name], verdicts[config["reference"]]),
                "by_seed": [np.mean([np.mean(answers) for answers in each.values()]) for each in verdicts[name]],
                "logs": _mean_logs([each["logs"] for each in kept[name]]),
            }
            for name in config["arms"]
        },
    }


def compare(first: list[Verdicts], second: list[Verdicts] | None = None) -> dict[str, dict[str, float]]:
    """Mean right answers by kind of task, or how many more than ``second``, seed by seed and question by question."""
    found: dict[str, Estimate] = {}
    for kind, tasks in task_kinds().items():
        groups = [np.array([each[task] for each in first], float) for task in tasks]
        if second is not None:
            others = [np.array([each[task] for each in second], float) for task in tasks]
            groups = [mine - theirs for mine, theirs in zip(groups, others, strict=True)]
        found[kind] = crossed_mean(groups)
    return {kind: asdict(estimate) for kind, estimate in found.items()}


def _mean_logs(of_seeds: list[list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Each logged number at the first and the last log, mean over the seeds."""
    skipped = ("epoch", "step", "learning_rate", "grad_norm")
    names = [name for name in of_seeds[0][0] if name not in skipped]
    return {
        place: {name: float(np.mean([logs[at][name] for logs in of_seeds])) for name in names}
        for place, at in (("first", 0), ("last", -1))
    }


def render(record: Mapping[str, Any]) -> str:
    """The results as a Markdown table, and how they were measured."""
    config, used = record["config"], record["versions"]
    kinds = list(task_kinds())
    lines = [_row(["arm", "right answers, %", *(f"{kind.replace('_', ' ')}: points" for kind in kinds)])]
    lines.append(_row(["---"] * (len(kinds) + 2)))
    for name, arm in record["arms"].items():
        gains = ["" if name == config["reference"] else _points(arm["difference"][kind]) for kind in kinds]
        low, high = min(arm["by_seed"]), max(arm["by_seed"])
        lines.append(
            _row([name, f"{100 * arm['average']['all']['value']:.1f} ({100 * low:.0f}–{100 * high:.0f})", *gains])
        )
    lines += [
        "",
        f"Points are differences to *{config['reference']}* of the same seed on the same questions, with 95 % "
        f"intervals over {len(config['seeds'])} seeds and {config['test_count']} questions a task, both resampled. The "
        "range in the second column is that of the seeds. "
        f"fusionroute {used['fusionroute']} ({record['commit']}), "
        f"torch {used['torch']}, transformers {used['transformers']}.",
    ]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _points(gain: Mapping[str, float]) -> str:
    value, low, high = (f"{100 * gain[key]:+z.1f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Differences to the reference with their intervals, one row an arm."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "fusionroute", "font.size": 9}
    names = [name for name in record["arms"] if name != record["config"]["reference"]]
    kinds = {"all": "all tasks", "one_expert": "one expert knows", "mixed": "mixed skills", "unknown": "none knows"}
    figure, panels = plt.subplots(1, len(kinds), figsize=(11, 0.3 * len(names) + 1), sharey=True, layout="constrained")
    for panel, (kind, title) in zip(panels, kinds.items(), strict=True):
        gains = [record["arms"][name]["difference"][kind] for name in names]
        values = np.array([100 * gain["value"] for gain in gains])
        reach = np.abs([[100 * gain[end] for gain in gains] for end in ("low", "high")] - values)
        colours = ["#0072b2" if record["config"]["arms"][name]["stage"] == 1 else "#d55e00" for name in names]
        panel.axvline(0, color="#999999", linewidth=0.8)
        panel.hlines(range(len(names)), values - reach[0], values + reach[1], colors=colours)
        panel.scatter(values, range(len(names)), color=colours, s=14, zorder=3)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("points")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.suptitle(f"Difference to {record['config']['reference']}, 95 % intervals", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
