"""``fusionroute pairs`` in this process, through typer's runner."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fusionroute.training.pairs.make
import tiny
from fusionroute import Team
from fusionroute.cli import app
from fusionroute.training.pairs.make import make_pairs
from fusionroute.training.pairs.writer import team_writer
from fusionroute.training.settings import PairSettings
from tiny_training import write_rows

ROWS = [{"prompt": f"{n}+{n}=", "completion": str(2 * n)} for n in range(1, 7)]
CHECKS = "def right(rows, answers):\n    return [answer == row['completion'] for row, answer in zip(rows, answers)]\n"


@pytest.fixture(scope="module")
def team_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teams") / "team"
    team = tiny.team(prompt="chat_template")
    team.router.lm.generation_config.eos_token_id = [tiny.EOS, *range(5, 261, 4)]  # so that most answers end
    team.save_pretrained(folder, save_experts=True)
    return folder


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """In the working folder, beside a checker."""
    (tmp_path / "tiny_cli_checks.py").write_text(CHECKS)
    monkeypatch.chdir(tmp_path)
    return write_rows(tmp_path / "prompts.jsonl", ROWS)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["pairs", *map(str, arguments)])


def complaint(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    return str(line)


CHECKER = ("--checker", "tiny_cli_checks:right")


def test_it_writes_what_the_library_does(team_folder: Path, prompts: str, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    result = run(
        team_folder, prompts, "--output", output, *CHECKER, "--samples", 2, "--temperature", 0.8, "--top-p", 0.9,
        "--max-new-tokens", 9, "--margin", 0.5, "--limit", 5, "--seed", 3, "--max-batch", 4, "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    settings = PairSettings(
        prompts=prompts, checker=CHECKER[1], samples=2, temperature=0.8, top_p=0.9, max_new_tokens=9, margin=0.5,
        limit=5, seed=3,
    )  # fmt: skip
    report = make_pairs(team_writer(Team.from_pretrained(team_folder)), settings, tmp_path / "library.jsonl")
    assert output.read_text() == (tmp_path / "library.jsonl").read_text()
    assert report.pairs == len(output.read_text().splitlines()) >= 1
    assert f"✓ {report}" in result.stdout
    assert f"{output} is ready\nnext: in the team file, data: {{pairs: {output}}} and a section cdpo\n" in result.stdout


def test_an_existing_file_is_replaced_only_if_asked(team_folder: Path, prompts: str, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    output.write_text("old")
    command = (team_folder, prompts, "--output", output, *CHECKER, "--samples", 0, "--max-new-tokens", 9)
    assert "exists already" in complaint(*command)
    assert output.read_text() == "old"
    assert run(*command, "--overwrite").exit_code == 0
    assert json.loads(output.read_text().splitlines()[0])["chosen_from"] == "reference"


def test_what_is_wrong_is_said_before_a_team_is_loaded(prompts: str, tmp_path: Path) -> None:
    command = ("/no/such/team", prompts, "--output", tmp_path / "pairs.jsonl")
    assert "name one of --checker, --reward-model, --judge-url; got none" in complaint(*command)
    assert "--judge-url and --judge-model belong together" in complaint(*command, "--judge-url", "http://host/v1")
    assert "got --checker, --reward-model" in complaint(*command, *CHECKER, "--reward-model", "some/model")
    assert "temperature" in complaint(*command, *CHECKER, "--temperature", 0)
    assert "tiny_cli_checks has no 'wrong'" in complaint(*command, "--checker", "tiny_cli_checks:wrong")
    assert "no model at '/no/such/model'" in complaint(*command, "--reward-model", "/no/such/model")
    assert "no team folder at /no/such/team" in complaint(*command, *CHECKER)


def test_prompts_that_are_not_there(team_folder: Path, prompts: str, tmp_path: Path) -> None:
    line = complaint(team_folder, tmp_path / "none.jsonl", "--output", tmp_path / "pairs.jsonl", *CHECKER)
    assert "no data file at" in line
    assert not (tmp_path / "pairs.jsonl.parts").exists()


def test_ctrl_c_keeps_what_was_made(
    team_folder: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "pairs.jsonl"
    command = (team_folder, prompts, "--output", output, *CHECKER, "--samples", 0, "--max-new-tokens", 9)
    with monkeypatch.context() as patch:
        patch.setattr(fusionroute.training.pairs.make, "_join", interrupted)
        assert run(*command).exit_code == 130
    assert (tmp_path / "pairs.jsonl.parts" / "part-000000.json").is_file()
    result = run(*command)
    assert result.exit_code == 0
    assert "made before" in result.stdout
    assert not (tmp_path / "pairs.jsonl.parts").exists()
