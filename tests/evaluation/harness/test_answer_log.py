"""Answers survive a crash, and answers of other conditions are nobody's."""

import json
import os
from pathlib import Path

import pytest

from fusionroute.engine.sequence import Completion, TraceRecord
from fusionroute.errors import OutputExistsError
from fusionroute.evaluation.harness.answer_log import AnswerLog

TRACE = [TraceRecord(5, "math", (0.25, 0.75), "both", -0.5, ((5, -0.5), (6, -1.0))), TraceRecord(6, "code")]
ANSWER = Completion("a\N{LINE SEPARATOR}b\u2603", [5, 6], "stop", TRACE)


def written(path: Path, *keys: str) -> None:
    with AnswerLog(path, {"seed": 0}) as log:
        for key in keys:
            log.add(key, ANSWER)


def known(path: Path, conditions: object) -> dict[str, Completion]:
    with AnswerLog(path, conditions) as log:
        return log.known


def test_what_was_added_is_known_the_next_time(tmp_path: Path) -> None:
    written(tmp_path / "log", "one", "two")
    assert known(tmp_path / "log", {"seed": 0}) == {"one": ANSWER, "two": ANSWER}
    written(tmp_path / "log", "three")
    assert list(known(tmp_path / "log", {"seed": 0})) == ["one", "two", "three"]


def test_all_that_was_asked_for_comes_back(tmp_path: Path) -> None:
    record = TraceRecord(5, "math", candidates=(("router", ((5, -0.5), (6, -1.0))), ("math", ())))
    answer = Completion("a", [5], "stop", [record], None, [(1, None, ()), (2, -0.25, ((2, -0.25), (3, -3.0)))])
    with AnswerLog(tmp_path / "log", {}) as log:
        log.add("one", answer)
    assert known(tmp_path / "log", {}) == {"one": answer}


def test_a_log_of_a_former_version_is_read(tmp_path: Path) -> None:
    record = {"token_id": 5, "expert": "math", "weights": [0.5, 0.5], "decided_by": "both", "logprob": -0.5}
    former = {"text": "a", "token_ids": [5], "finish_reason": "stop", "error": None}
    former |= {"trace": [record | {"top_logprobs": [[5, -0.5]]}]}
    (tmp_path / "log").write_text(json.dumps({"seed": 0}) + "\n" + json.dumps(["one", former]) + "\n")
    trace = [TraceRecord(5, "math", (0.5, 0.5), "both", -0.5, ((5, -0.5),))]
    assert known(tmp_path / "log", {"seed": 0}) == {"one": Completion("a", [5], "stop", trace)}


def test_a_half_written_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(path, "one", "two")
    path.write_bytes(path.read_bytes()[:-20])
    assert list(known(path, {"seed": 0})) == ["one"]
    written(path, "two")
    assert list(known(path, {"seed": 0})) == ["one", "two"]


def test_answers_of_other_conditions_are_neither_taken_nor_lost(tmp_path: Path) -> None:
    written(tmp_path / "log", "one")
    with pytest.raises(OutputExistsError, match="other conditions"):
        known(tmp_path / "log", {"seed": 1})
    assert AnswerLog.conditions_of(tmp_path / "log") == {"seed": 0}
    assert list(known(tmp_path / "log", {"seed": 0})) == ["one"]


def test_opening_never_leaves_less_than_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "log", "one", "two")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        known(tmp_path / "log", {"seed": 0})
    monkeypatch.undo()
    assert list(known(tmp_path / "log", {"seed": 0})) == ["one", "two"]


def test_an_empty_file_is_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    assert known(tmp_path / "log", {"seed": 0}) == {}
