"""``fusionroute calibrate``: a table, a verdict, and the file with the drafter in it."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import tiny_ensemble
from fusionroute.calibration import Calibration
from fusionroute.cli.calibrate import _judge, _table, write_drafter
from fusionroute.models.ensemble import EnsembleSettings
from fusionroute.zoo.build import weights_folder
from fusionroute.zoo.tasks import examples
from test_cli import complaint, run

NAMES = ("code", "math")
TEXT = """# our pair
models: {{code: {code}, math: {math}}}
prompt: chat_template  # each its own
device: cpu
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pair.yaml"
    path.write_text(TEXT.format(**{name: weights_folder(name) for name in NAMES}))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": each.prompt, "answer": each.answer} for each in examples("sums", "test", 8, 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_better_one_stands_in_the_new_file(file: Path, prompts: Path, tmp_path: Path) -> None:
    before, new = file.read_text(), tmp_path / "new.yaml"
    result = run("calibrate", file, prompts, "--output", new, "--limit", 6)
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert float(rows["math"][1]) < float(rows["code"][1])
    assert rows["code"][-4].startswith("+")
    assert "n = 6 prompts, 95 % intervals" in " ".join(result.stdout.split())
    assert "drafter: math\n" in result.stdout
    assert "warning: far behind math, in bits per byte: code" in result.stdout
    assert new.read_text() == before + "drafter: math\n"
    assert EnsembleSettings.read(new).drafter == "math"
    assert file.read_text() == before


def test_without_answers_the_models_write_and_judge(file: Path, prompts: Path) -> None:
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows[:4]))
    assert "two models without reference answers cannot be told apart" in complaint("calibrate", file, prompts)
    third = ("--set", f"models.chat={weights_folder('chat')}")
    result = run("calibrate", file, prompts, "--max-new-tokens", 16, *third)
    assert result.exit_code == 0, result.output
    assert "the model's own answers, as the other models judge them" in " ".join(result.stdout.split())
    assert "this is a guess" in result.stdout


def test_answers_that_loop_are_warned_of() -> None:
    found = Calibration({"a": (1.0,) * 7, "b": (2.0,) * 7}, by_reference=False, looping={"a": 5})
    console = Console(file=io.StringIO(), width=300)
    _judge(console, found)
    assert isinstance(console.file, io.StringIO)
    assert "warning: 5 of 7 answers of a were cut off while they repeated themselves" in console.file.getvalue()


def test_a_handful_of_prompts_is_within_noise(file: Path, prompts: Path) -> None:
    result = run("calibrate", file, prompts, "--limit", 2)
    assert "within noise: on other prompts code might have come first" in result.stdout
    (row,) = [line.split() for line in result.stdout.splitlines() if line.strip().startswith("code ")]
    assert (row[2], row[4]) == ("–", "–")
    assert " to " not in result.stdout
    assert "warning" not in result.stdout  # what is within noise is not far behind
    assert "n = 2 prompts, too few for intervals" in " ".join(result.stdout.split())


def test_no_interval_contradicts_what_is_within_noise() -> None:
    """Four of ten prompts differ: all the same way, which chance does in one case of eight."""
    found = Calibration({"a": (1.0,) * 10, "b": (1.0,) * 6 + (1.5,) * 4}, by_reference=True)
    assert found.is_within_noise("b")
    assert found.behind("b").low > 0
    cells = [list(column.cells) for column in _table(found).columns]
    assert cells[4] == ["", "–"]
    assert "to" in cells[2][1]


def test_nothing_is_overwritten_unasked(file: Path, prompts: Path) -> None:
    before = file.read_text()
    assert "exists; choose another name, or add --overwrite" in complaint("calibrate", file, prompts, "--output", file)
    assert file.read_text() == before
    assert run("calibrate", file, prompts, "--limit", 1, "--output", file, "--overwrite").exit_code == 0
    assert file.read_text() == before + "drafter: math\n"


def test_what_is_wrong_is_one_line(file: Path, prompts: Path, tmp_path: Path) -> None:
    assert "no settings file" in complaint("calibrate", tmp_path / "none.yaml", prompts)
    assert "no data file" in complaint("calibrate", file, tmp_path / "none.jsonl")
    assert "did you mean 'drafter'" in complaint("calibrate", file, prompts, "--set", "draftr=math")
    assert "'--limit'" in complaint("calibrate", file, prompts, "--limit", 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: {a: x/a, b: x/b}\n", "models: {a: x/a, b: x/b}\ndrafter: b\n"),
        ("drafter: a  # why\nmodels: {a: x/a, b: x/b}", "drafter: b\nmodels: {a: x/a, b: x/b}"),
        ("models:\n  a: x/a\n  b: x/b\ndrafter:\n", "models:\n  a: x/a\n  b: x/b\ndrafter: b\n"),
        ("drafter: b # kept\nmodels: {a: x/a, b: x/b}\n", "drafter: b\nmodels: {a: x/a, b: x/b}\n"),
    ],
)
def test_the_rest_of_the_file_stays_as_it_is(tmp_path: Path, text: str, expected: str) -> None:
    source, target = tmp_path / "source.yaml", tmp_path / "deep" / "target.yaml"
    source.write_text(text)
    write_drafter(source, target, "b")
    assert target.read_text() == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": None}, "# why\nmodels: {a: x/a, b: x/b}\nprompt: null\nhost: gac\ndrafter: b\n"),
        (
            {"draft_length": 3},
            "# why\nmodels: {a: x/a, b: x/b}\nprompt: alpaca\nhost: gac\ndraft_length: 3\ndrafter: b\n",
        ),
        (
            {"models": {"b": "y/b", "c": "y/c"}},
            "# why\nmodels: {b: y/b, c: y/c}\nprompt: alpaca\nhost: gac\ndrafter: b\n",
        ),
        ({"drafter": "a"}, "# why\nmodels: {a: x/a, b: x/b}\nprompt: alpaca\nhost: gac\ndrafter: b\n"),
    ],
)
def test_what_was_changed_stands_in_the_file_too(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    source, target = tmp_path / "source.yaml", tmp_path / "target.yaml"
    source.write_text("# why\nmodels: {a: x/a, b: x/b}\nprompt: alpaca\nhost: gac\n")
    write_drafter(source, target, "b", changes)
    assert target.read_text() == expected


def test_a_change_inside_of_a_block_is_written_too(tmp_path: Path) -> None:
    source, target = tmp_path / "source.yaml", tmp_path / "target.yaml"
    source.write_text("models:\n  a: x/a\n  b: x/b\n")
    write_drafter(source, target, "b", {"models.a.device": "cpu"})
    models = {"a": {"model": "x/a", "device": "cpu"}, "b": "x/b"}
    assert yaml.safe_load(target.read_text()) == {"models": models, "drafter": "b"}


@pytest.mark.parametrize("text", ["{models: {a: x/a, no: x/b}}\n", "{models: {a: x/a, no: x/b}, drafter: a}\n"])
def test_a_file_of_another_shape_is_written_anew(tmp_path: Path, text: str) -> None:
    source, target = tmp_path / "source.yaml", tmp_path / "target.yaml"
    source.write_text(text.replace("no:", '"no":'))
    write_drafter(source, target, "no")
    assert yaml.safe_load(target.read_text()) == {"models": {"a": "x/a", "no": "x/b"}, "drafter": "no"}


def test_an_ensemble_of_three_families(tmp_path: Path) -> None:
    path = tiny_ensemble.write_file(tmp_path, tiny_ensemble.save(tmp_path), drafter="left out", device="cpu")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello", "target": "the worlds"}\n')
    changes = ("--set", "host=gac", "--set", "weights={bytes: 1, pieces: 2, other: 1}")
    result = run("calibrate", path, prompts, "--output", tmp_path / "new.yaml", *changes)
    assert result.exit_code == 0, result.output
    new = EnsembleSettings.read(tmp_path / "new.yaml")
    assert (new.host, new.weights) == ("gac", {"bytes": 1, "pieces": 2, "other": 1})
    assert run("generate", tmp_path / "new.yaml", "hello", "--max-new-tokens", 3).exit_code == 0
