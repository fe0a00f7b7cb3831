"""``fusionroute merge`` in this process, through typer's runner, over the zoo's models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fusionroute.cli import app
from fusionroute.models.merging import merge_into_folder
from fusionroute.ops.merging import MergeSettings
from fusionroute.zoo.build import weights_folder

BASE = ("--base", weights_folder("base"))
MATH, CODE = (("--expert", f"{name}={weights_folder(name)}") for name in ("math", "code"))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


def complaint(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    return str(line)


@pytest.mark.parametrize(
    "values",
    [
        {"method": "task_arithmetic", "scale": 0.5},
        {"method": "ties", "density": 0.3},
        {"method": "dare", "drop_rate": 0.6, "seed": 3},
    ],
)
def test_it_writes_what_the_library_does(values: dict[str, Any], tmp_path: Path) -> None:
    given = [part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", value)]
    result = run(*given, *BASE, *MATH, *CODE, "--output", tmp_path / "cli", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    merge_into_folder(
        weights_folder("base"),
        {name: weights_folder(name) for name in ("math", "code")},
        MergeSettings.parse(values),
        tmp_path / "library",
        dtype="float32",
    )
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("cli", "library"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sorted(path.name for path in (tmp_path / "cli").iterdir()) == sorted(
        path.name for path in (tmp_path / "library").iterdir()
    )
    assert f"✓ merged math, code by {values['method']}" in result.stdout
    assert f"{tmp_path / 'cli'} is ready\nnext: load it like any checkpoint" in result.stdout


def test_an_existing_folder_is_replaced_only_if_asked(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    command = ("--method", "task_arithmetic", *BASE, *MATH, "--output", tmp_path)
    assert "already holds mine.txt" in complaint(*command)
    assert run(*command, "--overwrite").exit_code == 0
    assert not (tmp_path / "mine.txt").exists()


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    command = (*BASE, "--output", tmp_path / "merged")
    assert "did you mean 'ties'" in complaint("--method", "tise", *command, *MATH)
    assert "--drop-rate is an option of dare" in complaint("--method", "ties", "--drop-rate", 0.5, *command, *MATH)
    assert "--density: Input should be less than" in complaint("--method", "ties", "--density", 2, *command, *MATH)
    assert "--expert is NAME=MODEL" in complaint("--method", "ties", *command, "--expert", "somewhere/model")
    assert "--expert 'math' stands twice" in complaint("--method", "ties", *command, *MATH, *MATH)
    assert "Missing option '--expert'" in complaint("--method", "ties", *command)
    assert "no model at '/no/such/model'" in complaint("--method", "ties", *command, "--expert", "a=/no/such/model")
    assert not (tmp_path / "merged").exists()
