"""The paper's whole table, every method on every benchmark, on stand-ins for its models and data.

The shipped file is run as it is, but for where models and data lie and how much is written.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import tiny
from fusionroute.config import read_yaml
from fusionroute.evaluation.compare.run import compare
from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.models.team import TeamModels
from fusionroute.moe.roma.settings import RoMASettings
from fusionroute.terminal.progress import RichProgress
from tiny_reward import save_reward_model

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "configs" / "paper" / "evaluate"
DATA = ROOT / "tests" / "data" / "benchmarks"
FILES = {
    "gsm8k": {"test": "gsm8k_test"},
    "minerva_math500": {"test": "math500_test"},
    "mbpp": {"test": "mbpp_test"},
    "humaneval_instruct": {"test": "humaneval_test"},
    "ifeval": {"train": "ifeval_train"},
}
CONTEXT = 4096  # three shots of MBPP are long in bytes


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_comparison_is_well_formed(path: Path) -> None:
    settings = CompareSettings.from_yaml(path)
    assert settings.title is None
    assert settings.methods


def test_the_papers_table_has_a_row_for_each_method() -> None:
    settings = CompareSettings.from_yaml(PAPER / "llama3.yaml")
    kinds = [entry.method for entry in settings.methods.values()]
    assert kinds == [
        *["single"] * 3, "sequence_selection", "collab", "single", "dare", "task_arithmetic", *["fusion_route"] * 3,
    ]  # fmt: skip
    assert [(task.task, task.limit) for task in settings.tasks] == [
        ("gsm8k", 400), ("minerva_math500", 500), ("mbpp", 500), ("humaneval_instruct", 164), ("ifeval", 400),
    ]  # fmt: skip
    assert settings.generation.max_new_tokens == 400
    same = CompareSettings.from_yaml(PAPER / "gemma2.yaml")
    assert (same.tasks, list(same.methods)) == (settings.tasks, list(settings.methods))


def test_roma_s_rows_are_asked_as_they_were_tuned() -> None:
    settings = CompareSettings.from_yaml(PAPER / "roma.yaml")
    kinds = {name: entry.method for name, entry in settings.methods.items()}
    assert kinds == {"base": "single", "router tuning": "single", "C3PO": "c3po", "RoMA": "single"}
    tuned = RoMASettings.from_yaml(PAPER.parent / "roma-olmoe.yaml")
    assert settings.prompt == tuned.prompt == "chat_template"
    assert settings.experts["olmoe"].model == tuned.model.model
    assert settings.held_against == "RoMA"


def stand_ins(folder: Path) -> dict[str, Any]:
    """What takes the place of the hub in the file."""
    names = ("math", "code", "instruct")
    models = {name: tiny.language_model(seed=at, max_position_embeddings=CONTEXT) for at, name in enumerate(names)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    torch.manual_seed(0)
    router = tiny.router(max_position_embeddings=CONTEXT)
    team = TeamModels(router, dict(models), tiny.tokenizer(), "alpaca")
    team.save_pretrained(folder / "team", save_experts=True)
    team.save_pretrained(folder / "team" / "sft", save_experts=True)
    return {name: str(folder / name) for name in names}


def test_every_method_runs_on_every_benchmark(tmp_path: Path) -> None:
    values = read_yaml(PAPER / "llama3.yaml")
    values["experts"] = stand_ins(tmp_path)
    values["base"] = values["experts"]["instruct"]
    values["scorer"] = {"reward_model": save_reward_model(tmp_path / "reward", max_position_embeddings=CONTEXT)}
    values["generation"] = {"max_new_tokens": 5}
    values["device"] = "cpu"
    values["dtype"] = "float32"
    for entry in values["methods"].values():
        if "team" in entry:
            entry["team"] = entry["team"].replace("runs/llama3", str(tmp_path / "team"))
        if "model" in entry:
            entry["model"] = values["experts"]["instruct"]
        if entry["method"] == "collab":
            entry["rollout"] = 2
    for task in values["tasks"]:
        task["data"] = {split: str(DATA / f"{name}.jsonl") for split, name in FILES[task["task"]].items()}
        task["limit"] = 2
    with RichProgress(Console(quiet=True)) as progress:
        record = compare(CompareSettings.parse(values), tmp_path / "out", progress=progress)
    assert record["failed"] == []
    assert all(set(row) == {*FILES, "average"} for row in record["accuracy"].values())
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out" / "cells").glob("*/*/*.json")]
    assert len(cells) == len(values["methods"]) * len(FILES)
    for cell in cells:
        assert cell["n"] == 2
        assert all("### Instruction" in each["context"] for each in cell["examples"])  # the models' format
        assert 0 < cell["cost"]["tokens_written"] <= 2 * 5
