"""``fusionroute evaluate`` as a user runs it: a table and where the page lies, or one line that says what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fusionroute.cli import app
from fusionroute.methods.averaging import Averaging
from fusionroute.zoo.build import weights_folder
from fusionroute.zoo.lm_eval import FOLDER

FILE: dict[str, Any] = {
    "experts": {name: str(weights_folder(name)) for name in ("math", "chat")},
    "prompt": "chat_template",
    "methods": {"math alone": {"method": "single", "expert": "math"}, "both": "averaging"},
    "include": [str(FOLDER)],
    "tasks": [{"task": "zoo_sums", "limit": 4}],
    "device": "cpu",
}


def evaluate(tmp_path: Path, *options: str, **changes: Any) -> Any:
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(FILE | changes))
    return CliRunner().invoke(app, ["evaluate", str(path), "--output", str(tmp_path / "out"), *options])


def test_a_table_and_where_the_rest_lies(tmp_path: Path) -> None:
    result = evaluate(tmp_path, "--set", "seeds=[0, 1]")
    assert result.exit_code == 0, result.output
    assert "math alone" in result.stdout
    results, page = tmp_path / "out" / "results.json", tmp_path / "out" / "report.html"
    assert result.stdout.endswith(f"{results} is ready\nnext: open {page} in a browser\n")
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["command"] == "fusionroute evaluate compare.yaml --output out --set 'seeds=[0, 1]'"
    assert record["seeds"] == [0, 1]
    again = evaluate(tmp_path, "--set", "seeds=[0, 1]")
    assert again.exit_code == 0
    assert "comparing" not in again.stdout  # nothing was left to measure


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        ((), {"methods": {"a": {"method": "colab"}}}, ("compare.yaml", "did you mean 'collab'")),
        ((), {"tasks": ["zoo_sum"]}, ("unknown task 'zoo_sum'", "zoo_sums")),
        ((), {"tasks": [{"task": "zoo_sums", "metric": "corect"}]}, ("metric of task 'zoo_sums'", "correct,checked")),
        ((), {"tasks": [{"task": "zoo_sums", "limit": 0}]}, ("limit",)),
        (("--set", "experts.math=no/such/folder/x"), {}, ("no/such/folder/x",)),
        (("--set", "seed=3"), {}, ("did you mean 'seeds'",)),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, options: tuple[str, ...], changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    result = evaluate(tmp_path, *options, **changes)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert all(word in line for word in words), line
    assert not (tmp_path / "out" / "cells").exists()


def test_a_failed_cell_is_told_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = {"method": "fusion_route", "team": str(tmp_path / "team")}
    plain = {"method": "single", "expert": "math"}
    (tmp_path / "team").mkdir()
    result = evaluate(tmp_path, methods={"math": plain, "team": team})
    assert result.exit_code == 2  # not even its identity can be told: nothing is measured
    assert "team.json" in result.stderr
    other = {"method": "single", "model": str(weights_folder("base"))}
    scored = {"method": "sequence_selection", "scorer": {"model": str(tmp_path / "scorer")}}
    save_scorer(tmp_path / "scorer")
    result = evaluate(tmp_path, methods={"math": plain, "base": other, "selection": scored})
    assert result.exit_code == 2
    assert "the tokenizer of expert 'scorer' differs" in result.stderr
    assert "a reward_model may have any tokenizer" in result.stderr
    monkeypatch.setattr(Averaging, "step", failing)
    result = evaluate(tmp_path, methods={"math": plain, "both": "averaging"})
    assert result.exit_code == 1
    assert "1 cells failed; the first, both on zoo_sums: RuntimeError: no more" in result.stderr
    assert "math" in result.stdout


def failing(*_: Any) -> None:
    raise RuntimeError("no more")


def save_scorer(folder: Path) -> None:
    """A language model with another tokenizer."""
    import tiny

    tiny.language_model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
