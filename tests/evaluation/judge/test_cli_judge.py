"""``fusionroute judge`` through typer's runner; in a terminal, as a user starts it."""

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fusionroute.cli import app
from judge_server import JudgeServer, status, write_answers


@pytest.fixture
def command(served: JudgeServer, tmp_path: Path) -> list[str]:
    a = write_answers(tmp_path / "fused.jsonl", {"p": "9", "q": "8", "r": "7"})
    b = write_answers(tmp_path / "tuned.jsonl", {"p": "8", "q": "8.5", "r": "1"})
    served_by = ["--judge-url", served.url, "--judge-model", "rule"]
    return ["judge", str(a), str(b), *served_by, "--output", str(tmp_path / "judged")]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def complaint(*arguments: object, code: int = 2) -> str:
    result = run(*arguments)
    assert result.exit_code == code
    (line,) = result.stderr.splitlines()
    return str(line)


def test_it_judges_and_says_so(command: list[str], tmp_path: Path) -> None:
    result = run(*command, "--yes", "--order", "both", "--price-in", 2.5, "--price-out", 10)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("6 calls that send ")
    sent = int(lines[0].split("about ")[1].split(" ")[0].replace(",", ""))
    assert lines[1] == f"at these prices about {(sent * 2.5 + 720 * 10) / 1e6:,.2f}"
    assert "judging by rule (6)" in lines
    assert lines[-4] == ("fused against tuned: wins 66.7 % of 3 (95 % interval 20.8 to 93.9): 2 wins, 1 losses, 0 ties")
    assert lines[-3].startswith("the answer shown first was preferred in 50.0 % of 6 (")
    assert lines[-2] == f"{tmp_path / 'judged' / 'win_rate.json'} is ready"
    assert json.loads((tmp_path / "judged" / "win_rate.json").read_text())["wins"] == 2


def test_without_yes_and_without_a_terminal_nobody_is_asked(
    command: list[str], served: JudgeServer, tmp_path: Path
) -> None:
    assert "3 calls may cost money and nobody is here to confirm; add --yes" in complaint(*command)
    assert served.asked == []
    assert not (tmp_path / "judged").exists()
    assert run(*command, "--yes").exit_code == 0
    again = run(*command)  # nothing is left to pay for
    assert again.exit_code == 0
    assert "calls" not in again.stdout


def in_a_terminal(command: list[str], typed: str) -> tuple[int, str]:
    """Exit code, and all that was shown."""
    ours, theirs = pty.openpty()
    os.write(ours, typed.encode())
    process = subprocess.Popen(
        [sys.executable, "-m", "fusionroute", *command],
        stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how a terminal ends
        while read := os.read(ours, 4096):
            shown += read
    os.close(ours)
    return process.wait(), shown.decode()


@pytest.mark.parametrize(("answer", "code", "calls"), [("y", 0, 3), ("n", 130, 0)])
def test_a_terminal_is_asked(answer: str, code: int, calls: int, command: list[str], served: JudgeServer) -> None:
    code_found, shown = in_a_terminal(command, f"{answer}\n")
    assert code_found == code, shown
    assert "Ask the judge? [y/N]" in shown
    assert ("fused against tuned: wins" in shown) is (answer == "y")
    assert len(served.asked) == calls


def test_what_is_wrong_is_one_line(command: list[str], served: JudgeServer, tmp_path: Path) -> None:
    assert "--price-in and --price-out belong together" in complaint(*command, "--price-in", 1)
    assert "--order: Input should be 'first', 'random' or 'both'" in complaint(*command, "--order", "last")
    assert "--judge-model: " in complaint(*command, "--judge-model", "")
    assert "--judge-url starts with http" in complaint(*command, "--judge-url", "here", "--yes")
    assert "no answers file at" in complaint(command[0], tmp_path / "none", *command[2:])
    served.faults = {prompt: [status(401)] for prompt in "pqr"}
    assert "HTTP 401" in complaint(*command, "--yes")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    assert "choose another output folder" in complaint(*command, "--output", tmp_path / "other", "--yes")


def test_a_judge_that_cannot_be_understood_is_a_failure(command: list[str], served: JudgeServer) -> None:
    served.say = dict.fromkeys("pqr", "no")
    line = complaint(*command, "--yes", code=1)
    assert "no verdict can be read" in line
    assert "3 unparsable" in line
    assert "verdicts.jsonl" in line
