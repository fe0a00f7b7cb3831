"""Answers survive a crash, and answers of other conditions are nobody's."""

from pathlib import Path

from fusionroute.engine.sequence import Completion, TraceRecord
from fusionroute.evaluation.answer_log import AnswerLog

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


def test_a_half_written_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(path, "one", "two")
    path.write_bytes(path.read_bytes()[:-20])
    assert list(known(path, {"seed": 0})) == ["one"]
    written(path, "two")
    assert list(known(path, {"seed": 0})) == ["one", "two"]


def test_answers_of_other_conditions_are_not_taken(tmp_path: Path) -> None:
    written(tmp_path / "log", "one")
    assert known(tmp_path / "log", {"seed": 1}) == {}


def test_an_empty_file_is_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    assert known(tmp_path / "log", {"seed": 0}) == {}
