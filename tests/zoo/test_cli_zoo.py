"""``fusionroute zoo`` shows the families beside the team's models, draws their tasks and builds them again."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fusionroute.cli import app
from fusionroute.models.loading import ModelReference, load_tokenizer
from fusionroute.training.data.rows import read_example
from fusionroute.zoo.build import MODELS
from fusionroute.zoo.families import FAMILIES, build
from fusionroute.zoo.families.recipe import FamilyRecipe
from fusionroute.zoo.judge import judge
from fusionroute.zoo.moe import MOE_MODELS
from fusionroute.zoo.tasks import FAMILY_TASKS, TASKS


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_list_shows_all_models_and_tasks() -> None:
    shown = run("zoo", "list").stdout
    for name in (*TASKS, *FAMILY_TASKS):
        assert f"\n{name}  " in shown
    for name in FAMILIES:
        (line,) = (line for line in shown.splitlines() if line.startswith(f"  {name} "))
        assert "parameters" in line
        assert "own tokenizer" in line


def test_examples_of_a_ledger() -> None:
    lines = run("zoo", "examples", "ledger", "--count", 2).stdout.splitlines()
    assert [json.loads(line)["task"] for line in lines] == ["ledger"] * 2


def test_examples_are_rows_to_learn_from_and_to_be_judged_by() -> None:
    (line,) = run("zoo", "examples", "sums", "--count", 1).stdout.splitlines()
    row = json.loads(line)
    assert read_example(row)[1] == row["completion"]
    assert judge([row], [row["completion"]]) == [1]


def test_the_models_are_taken_into_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    assert f"{folder} is ready\nnext: name its" in run("zoo", "take", "--output", folder).stdout
    assert load_tokenizer(ModelReference(model=str(folder / "math"))).vocab_size > 0
    assert {each.name for each in folder.iterdir()} == {*MODELS, *FAMILIES, *MOE_MODELS, "tasks"}
    (folder / "mine.txt").write_text("kept")
    assert run("zoo", "take", "--output", folder).exit_code != 0
    assert (folder / "mine.txt").read_text() == "kept"


def test_families_are_built_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FamilyRecipe", lambda seed: FamilyRecipe(seed=seed).scaled(0.002))
    result = run("zoo", "build", "--models", "families", "--output", tmp_path / "zoo", "--seed", 3)
    assert result.exit_code == 0
    assert "unigram is taught" in result.stdout
    record = json.loads((tmp_path / "zoo" / build.RECORD).read_text())
    assert record["recipe"]["seed"] == 3
    assert set(record["sha256"]) == set(FAMILIES)


def test_a_folder_in_use_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    result = run("zoo", "build", "--models", "families", "--output", tmp_path)
    assert result.exit_code == 2
    assert "is not empty and holds no families.json" in result.stderr
