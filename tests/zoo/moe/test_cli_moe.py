"""``fusionroute zoo`` shows the mixtures of experts, draws their questions and builds them again."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fusionroute.cli import app
from fusionroute.moe.questions.questions import read_questions
from fusionroute.zoo.moe import MOE_MODELS, build
from fusionroute.zoo.moe.recipe import MoeRecipe
from fusionroute.zoo.moe.tasks import HELD_OUT, MOE_TASKS, questions


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_list_shows_the_mixtures_and_their_tasks():
    shown = run("zoo", "list").stdout
    for name in MOE_MODELS:
        (line,) = (line for line in shown.splitlines() if line.startswith(f"  {name} "))
        assert "mixture of experts" in line
    for name in MOE_TASKS:
        (line,) = (line for line in shown.splitlines() if line.startswith(f"moe_{name}  "))
        assert ("held out" in line) is (name in HELD_OUT)


def test_examples_are_a_file_of_questions(tmp_path: Path):
    file = tmp_path / "kind.jsonl"
    file.write_text(run("zoo", "examples", "moe_kind", "--split", "dev", "--count", 3).stdout)
    assert read_questions(file) == questions("kind", "dev", 3)
    assert "options" not in json.loads(run("zoo", "examples", "moe_swap", "--count", 1).stdout)


def test_a_task_of_the_team_that_is_called_alike_stays_what_it_was():
    team, mixtures = (
        json.loads(run("zoo", "examples", name, "--count", 1).stdout) for name in ("translation", "moe_translation")
    )
    assert team["prompt"].startswith("In Vask: ")
    assert len(mixtures["options"]) == 4


def test_too_many_examples_are_one_clear_line():
    result = run("zoo", "examples", "moe_series", "--count", 9999)
    assert result.exit_code == 2
    assert "ask for fewer" in result.stderr


def test_mixtures_are_built_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "MoeRecipe", lambda seed: MoeRecipe(seed=seed).scaled(0.002))
    result = run("zoo", "build", "--models", "moe", "--output", tmp_path / "zoo", "--seed", 3)
    assert result.exit_code == 0, result.output
    assert "qwen3_moe is taught" in result.stdout
    record = json.loads((tmp_path / "zoo" / build.RECORD).read_text())
    assert record["recipe"]["seed"] == 3
    assert set(record["sha256"]) == set(MOE_MODELS)
