"""A comparison as the harness writes it, made up by a seeded generator from the zoo's questions."""

import random
import re
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from fusionroute.evaluation.compare.ensembling import ensembling
from fusionroute.evaluation.report import write_report
from fusionroute.zoo.tasks import examples

Cell = dict[str, Any]
Record = dict[str, Any]
EXPERTS = ("math", "code", "chat")
TASKS = ("sums", "functions", "words", "sum_and_words", "sum_in_code", "all_three", "translation")
SEEDS = (0, 1, 2)
ITEMS = 30
# Method to how often it is right by task, and whether it was trained anew for each seed.
SKILL: dict[str, tuple[tuple[float, ...], bool]] = {
    "math expert": ((0.93, 0.03, 0.06, 0.12, 0.02, 0.03, 0.0), False),
    "code expert": ((0.05, 0.88, 0.02, 0.03, 0.05, 0.02, 0.0), False),
    "chat expert": ((0.04, 0.01, 0.80, 0.05, 0.01, 0.02, 0.0), False),
    "router alone": ((0.55, 0.50, 0.52, 0.45, 0.44, 0.41, 0.90), True),
    "Fine-tuned": ((0.60, 0.62, 0.58, 0.55, 0.50, 0.49, 0.91), True),
    "Task arithmetic": ((0.40, 0.33, 0.45, 0.20, 0.15, 0.11, 0.0), False),
    "TIES": ((0.42, 0.37, 0.41, 0.22, 0.14, 0.12, 0.0), False),
    "DARE": ((0.44, 0.35, 0.43, 0.19, 0.17, 0.10, 0.0), True),
    "Averaging": ((0.30, 0.25, 0.35, 0.10, 0.08, 0.05, 0.0), False),
    "Sequence selection": ((0.90, 0.86, 0.77, 0.11, 0.05, 0.03, 0.0), False),
    "Collab": ((0.88, 0.84, 0.78, 0.70, 0.66, 0.58, 0.0), False),
    "Mixed router, a method with a rather long name": ((0.70, 0.69, 0.66, 0.60, 0.55, 0.50, 0.3), True),
    "FusionRoute without complement": ((0.90, 0.86, 0.79, 0.91, 0.88, 0.86, 0.0), True),
    "FusionRoute SFT": ((0.90, 0.85, 0.78, 0.88, 0.86, 0.84, 0.72), True),
    "FusionRoute": ((0.90, 0.86, 0.78, 0.90, 0.86, 0.85, 0.89), True),
}
ROUTING = tuple(SKILL)[9:]
OWNERS = {"sums": (0,), "functions": (1,), "words": (2,), "sum_and_words": (0, 2), "sum_in_code": (0, 1)}


def comparison(methods: tuple[str, ...] = tuple(SKILL), tasks: tuple[str, ...] = TASKS) -> tuple[Record, list[Cell]]:
    """The record and the cells of a whole comparison; the same for the same arguments."""
    draw = random.Random(f"{methods} {tasks}")
    asked = {task: examples(task, "test", ITEMS) for task in tasks}
    cells = [
        _cell(method, task, seed, asked[task], draw)
        for method in methods
        for task in tasks
        for seed in (SEEDS if SKILL[method][1] else (None,))
    ]
    return _record(methods, tasks, cells), cells


def _cell(method: str, task: str, seed: int | None, asked: list[Any], draw: random.Random) -> Cell:
    chance = SKILL[method][0][TASKS.index(task)]
    answers = []
    for at, question in enumerate(asked):
        # questions are hard or easy for everybody, so that methods agree as real ones do
        hard = random.Random(f"{task} {at}").random()
        is_right = draw.random() * 0.5 + hard * 0.5 < chance if chance else False
        text = question.answer if is_right else _spoilt(question.answer, draw)
        answers.append(
            {
                "id": at,
                "prompt": question.prompt,
                "target": question.answer,
                "answer": text,
                "score": float(is_right),
                "finish_reason": "stop" if is_right or draw.random() < 0.7 else "length",
                "tokens": _tokens(method, task, text, draw),
            }
        )
    score = fmean(answer["score"] for answer in answers)
    metric = "exact_match,none"
    named = {"method": method, "task": f"zoo_{task}", "seed": seed, "metric": metric}
    return named | {"value": score, "n": len(answers), "examples": answers}


def _spoilt(text: str, draw: random.Random) -> str:
    if draw.random() < 0.15:
        return (text + "\n") * 4
    digits = re.sub(r"\d", lambda found: draw.choice([found.group(), str(draw.randrange(10))]), text)
    words = digits.split(" ")
    draw.shuffle(words)
    return " ".join(words) if draw.random() < 0.5 else digits[: max(1, len(digits) * 2 // 3)]


def _tokens(method: str, task: str, text: str, draw: random.Random) -> dict[str, list[str]]:
    pieces = re.findall(r"\s?\w{1,4}|\s?[^\w\s]|\s", text)
    owners = OWNERS.get(task, (0, 1, 2))
    if method not in ROUTING:
        name = method.removesuffix(" expert")
        return {"text": pieces, "expert": [name] * len(pieces), "decided_by": ["expert"] * len(pieces)}
    experts, deciders = [], []
    for at, _ in enumerate(pieces):
        owner = owners[at * len(owners) // len(pieces)]
        experts.append(EXPERTS[owner if draw.random() < 0.9 else draw.randrange(3)])
        deciders.append(draw.choices(["both", "expert", "router", "neither"], [70, 18, 10, 2])[0])
    return {"text": pieces, "expert": experts, "decided_by": deciders}


def _record(methods: tuple[str, ...], tasks: tuple[str, ...], cells: list[Cell]) -> Record:
    names = [f"zoo_{task}" for task in tasks]
    scores = {(c["method"], c["task"]): [] for c in cells}
    for cell in cells:
        scores[cell["method"], cell["task"]].append(cell["value"])
    accuracy = {method: _accuracies([fmean(scores[method, name]) for name in names], names) for method in methods}
    experts = [method for method in methods if method.endswith("expert")]
    bounds, winners = {}, {}
    if experts:
        best = max(experts, key=lambda method: accuracy[method]["average"]["value"])
        top = [max(accuracy[method][name]["value"] for method in methods) for name in names]
        bounds = {
            "best single expert": accuracy[best],
            "oracle per prompt": _accuracies([min(1.0, value + 0.06) for value in top], names),
        }
        winners = {"best single expert": best}
    reference = methods[-1]
    return {
        "format": "fusionroute.comparison",
        "title": "Every way of combining the zoo's models",
        "command": "fusionroute evaluate configs/zoo/compare.yaml --output runs/comparison",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "date": "2026-11-22T10:15:00+00:00",
        "versions": {"fusionroute": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "lm_eval": "0.4.13"},
        "machine": {"cpu": "two cores", "memory_gib": 8.0, "gpus": []},
        "settings": {"experts": {name: f"zoo:{name}" for name in EXPERTS}, "tasks": names, "methods": list(methods)},
        "seeds": list(SEEDS),
        "tasks": names,
        "metrics": dict.fromkeys(names, "exact_match,none"),
        "methods": list(methods),
        "bounds": list(bounds),
        "reference": reference,
        "accuracy": accuracy | bounds,
        "differences": {
            method: {
                column: _difference(accuracy[reference][column]["value"] - accuracy[method][column]["value"])
                for column in [*names, "average"]
            }
            for method in methods
            if method != reference
        },
        "cost": {method: _cost(method, at) for at, method in enumerate(methods)},
        "usage": {method: _usage(method, cells, names) for method in methods if method in ROUTING},
        "winners": winners,
        "failed": [],
    }


def _accuracies(values: list[float], names: list[str]) -> dict[str, Any]:
    columns = dict(zip([*names, "average"], [*values, fmean(values)], strict=True))
    return {
        column: {
            "value": value,
            "low": max(
                0.0, value - (reach := 1.96 * sqrt(value * (1 - value) / 90 + 0.0004) / (1 + (column == "average")))
            ),
            "high": min(1.0, value + reach),
            "stderr": reach / 1.96,
            "n": ITEMS * (len(values) if column == "average" else 1),
            "seeds": 3,
        }
        for column, value in columns.items()
    }


def _difference(value: float) -> dict[str, float]:
    p = max(0.0, 0.9 - 14 * abs(value))
    return {"value": value, "low": value - 0.03, "high": value + 0.03, "p": p, "p_adjusted": min(1.0, 3 * p), "n": 210}


def _cost(method: str, at: int) -> dict[str, Any]:
    reads: dict[str, float] = {method.removesuffix(" expert"): 0.99}
    if method in ROUTING:
        each = {"Sequence selection": 1.6, "Collab": 8.2, "Averaging": 1.0}.get(method, 0.41)
        reads = {"router": 0.99} if "oute" in method else {}
        reads |= dict.fromkeys(EXPERTS, each)
    total = sum(reads.values())
    return {
        "seconds_per_token": 0.00042 * total * (1 + 0.01 * at),
        "tokens_written": 6300,
        "tokens_read_per_token": reads,
        "peak_memory": {"weights": 3_600_000 * len(reads), "cache": int(1_800_000 * total)},
        "batch": 64,
    }


def _usage(method: str, cells: list[Cell], names: list[str]) -> dict[str, Any]:
    by_task, by_position = {}, {}
    for name in names:
        tenths = [[0] * len(EXPERTS) for _ in range(10)]
        for cell in cells:
            if (cell["method"], cell["task"]) == (method, name):
                for example in cell["examples"]:
                    experts = example["tokens"]["expert"]
                    for at, expert in enumerate(experts):
                        tenths[at * 10 // len(experts)][EXPERTS.index(expert)] += 1
        totals = [sum(tenth[e] for tenth in tenths) for e in range(len(EXPERTS))]
        by_task[name] = {expert: totals[e] / sum(totals) for e, expert in enumerate(EXPERTS)}
        by_position[name] = {expert: [t[e] / max(sum(t), 1) for t in tenths] for e, expert in enumerate(EXPERTS)}
    return {"experts": list(EXPERTS), "by_task": by_task, "by_position": by_position}


@pytest.fixture(scope="session")
def whole() -> tuple[Record, list[Cell]]:
    """Fifteen methods, seven tasks, three seeds; to be read, not changed."""
    return comparison()


@pytest.fixture
def small() -> tuple[Record, list[Cell]]:
    """Three methods, two tasks."""
    return comparison(("math expert", "Collab", "FusionRoute"), ("sums", "all_three"))


@pytest.fixture
def checked() -> tuple[Record, list[Cell]]:
    """`small`, but the tokens of its last method were checked: those after a space are ensembled, every other kept."""
    record, cells = comparison(("math expert", "Collab", "FusionRoute"), ("sums", "all_three"))
    own = [cell for cell in cells if cell["method"] == "FusionRoute"]
    for cell in own:
        for example in cell["examples"]:
            _check(example["tokens"])
    record["ensembling"] = {"FusionRoute": ensembling(own)}
    record["cost"]["FusionRoute"] |= {"ensembled_per_token": 0.0357, "acceptance": 0.925}
    return record, cells


def _check(tokens: dict[str, Any]) -> None:
    """Adds the end of the answer too, which shows nothing."""
    tokens["text"].append("")
    tokens["expert"].append("math")
    tokens["decided_by"].append("expert")
    verdicts = ["replaced" if text.startswith(" ") else "consensus" for text in tokens["text"]]
    tokens["verdict"] = [*verdicts[:-1], "ensembled"]
    spread = [(0.25, 0.5) if verdict != "consensus" else (0.9, None) for verdict in tokens["verdict"]]
    tokens["support"] = {"math": [each[0] for each in spread], "code": [each[1] for each in spread]}


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[..., str]:
    """The page that `write_report` writes."""

    def write(record: Record, cells: list[Cell], **options: Any) -> str:
        write_report(record, cells, tmp_path / "report.html", **options)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


@pytest.fixture
def build() -> Callable[..., tuple[Record, list[Cell]]]:
    """`comparison`, for the methods and tasks a test asks for."""
    return comparison
