"""What the benchmarks share: ratios worked out by hand, what a result says of itself, and what it refuses."""

import argparse
import json
import sys
from pathlib import Path

import measuring
import pytest


def test_ratios_are_those_of_single_rounds() -> None:
    # medians of the columns would say 2 / 1 = 2
    assert measuring.ratio([1, 2, 9], [1, 4, 1]) == {"median": 1, "min": 0.5, "max": 9}
    assert measuring.quartiles([1, 2, 3], [1, 1, 1]) == {
        "median": 2, "lower quartile": 1, "upper quartile": 3, "n": 3
    }  # fmt: skip


def test_candidates_take_turns_and_the_first_round_is_not_measured() -> None:
    said = list[str]()
    seconds = measuring.alternate({"a": lambda: said.append("a"), "b": lambda: said.append("b")}, rounds=2)
    assert said == ["a", "b"] * 3
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}


def test_a_result_names_no_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    root = measuring.ROOT
    monkeypatch.setattr(sys, "argv", [str(root / "benchmarks/x.py"), "--output", "/elsewhere/x.json", "--new", "8"])
    record = measuring.record()
    assert record["command"] == "python benchmarks/x.py --output x.json --new 8"
    assert str(root) not in json.dumps(record)
    assert record["machine"]["processor"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
    measuring.run(argparse.ArgumentParser(), lambda _: {"value": 1}, lambda results: f"value {results['value']}")


def test_a_result_is_written_shown_again_and_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x.json"
    run(monkeypatch, "--output", str(output))
    assert json.loads(output.read_text()) == {"value": 1}
    run(monkeypatch, "--render", str(output))
    assert capsys.readouterr().out.endswith("value 1\n")
    for arguments in (["--output", str(output)], []):
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments)
        assert "give --output FILE; a file that exists needs --overwrite" in capsys.readouterr().err
    run(monkeypatch, "--output", str(output), "--overwrite")
