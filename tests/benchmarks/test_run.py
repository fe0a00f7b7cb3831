"""The runner: what is skipped, what fails, and what is kept of it. The scripts are real processes, made up here."""

from pathlib import Path

import pytest
import run
from rows import Need, Script

WRITES = "import json, sys\njson.dump({}, open(sys.argv[sys.argv.index('--output') + 1], 'w'))\n"


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()

    def tried(source: str | None, *needs: Need) -> run.Outcome:
        if source is not None:
            (tmp_path / "benchmarks" / "made_up.py").write_text(source)
        return run.one(Script("made_up", quick="--few"), "--few", needs, tmp_path / "out.json", quiet=True)

    return tried


def test_a_script_that_writes_its_result_is_done(tried) -> None:  # type: ignore[no-untyped-def]
    assert tried(WRITES).state == run.DONE
    assert (
        tried("import sys\nassert sys.argv[1] == '--few'\nassert '--overwrite' in sys.argv\n" + WRITES).state
        == run.DONE
    )


def test_what_cannot_run_is_skipped_with_a_word(tried) -> None:  # type: ignore[no-untyped-def]
    outcome = tried(WRITES, Need("there/is/none", "make it"))
    assert (outcome.state, outcome.word) == (run.SKIPPED, "no there/is/none; make it makes it")
    for code in (0, 1):
        outcome = tried(f"print('skipped: no such device')\nraise SystemExit({code})")
        assert (outcome.state, outcome.word) == (run.SKIPPED, "no such device")


def test_a_failure_is_told_with_the_last_words(tried) -> None:  # type: ignore[no-untyped-def]
    assert tried(None).word == "there is no benchmarks/made_up.py"
    outcome = tried("raise ValueError('too slow')")
    assert outcome.state == run.FAILED
    assert outcome.word.endswith("ValueError: too slow")
    outcome = tried("print('written nothing')")
    assert (outcome.state, outcome.word) == (run.FAILED, "exit code 0\nwritten nothing")


def test_an_old_result_is_no_proof(tried, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "out.json").write_text("{}")
    assert tried("print('nothing new')").state == run.FAILED


def test_a_result_without_the_figure_of_a_row_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "roma_speed.py").write_text(WRITES)
    outcome = run.one(Script("roma_speed", quick=""), "", (), tmp_path / "out.json", quiet=True)
    assert outcome.state == run.FAILED
    assert "RoMA: training step ÷ plain router tuning: no figure (KeyError" in outcome.word


def test_a_long_run_is_watched_while_it_says_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "made_up.py").write_text("print('half ...', end=' ', flush=True)\n" + WRITES)
    assert run.one(Script("made_up", quick=""), "", (), tmp_path / "out.json").state == run.DONE
    assert capsys.readouterr().out == "half ... "
    (tmp_path / "benchmarks" / "made_up.py").write_text("raise ValueError('too slow')")
    outcome = run.one(Script("made_up", quick=""), "", (), tmp_path / "out.json")
    assert (outcome.state, outcome.word) == (run.FAILED, "exit code 1\nValueError: too slow")
