import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fusionroute.errors import DataError
from fusionroute.evaluation.judge.answers import Item, match_answers
from fusionroute.evaluation.judge.origin import read_origin, title


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def test_answers_are_matched_by_prompt(tmp_path: Path) -> None:
    a = write(
        tmp_path / "a.jsonl",
        {"prompt": "1+1=", "text": "2", "finish_reason": "eos", "trace": []},
        "",
        {"messages": CHAT, "answer": "So."},
        {"prompt": [{"role": "user", "content": "é\u2028\ud83d"}], "text": ""},
    )
    b = write(
        tmp_path / "b.jsonl",
        {"prompt": "é\u2028\ud83d", "answer": "x"},
        {"prompt": CHAT, "text": "Because."},
        {"messages": [{"role": "user", "content": "1+1="}], "text": "3"},
    )
    items = match_answers(a, b)
    assert items == [Item("1+1=", "2", "3"), Item(CHAT, "So.", "Because."), Item("é\u2028\ud83d", "", "x")]
    assert len({item.key for item in items}) == 3
    assert match_answers(b, a)[2].key != items[0].key  # who is a matters
    assert match_answers(a, b)[0].key == items[0].key


GOOD = {"prompt": "1", "text": "x"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"holds no answers; give at least one"),
        (["{"], r"b\.jsonl:1 is not valid JSON"),
        ([GOOD, "[1]"], r"b\.jsonl:2: an object with a text as either `prompt` or `messages`; got \[1\]"),
        ([{"text": "x"}], r"`prompt` or `messages`"),
        ([{"prompt": "1", "messages": CHAT, "text": "x"}], r"`prompt` or `messages`"),
        ([{"prompt": [1, 2], "text": "x"}], r"messages are objects with a role and a content; got \[1, 2\]"),
        ([{"prompt": [], "text": "x"}], r"messages are objects with a role and a content"),
        ([{"prompt": "1"}], r"`text` or `answer`"),
        ([{"prompt": "1", "text": "x", "answer": "x"}], r"`text` or `answer`"),
        ([{"prompt": "1", "text": None}], r"`text` or `answer`"),
        ([GOOD, {"prompt": "2", "text": ""}, GOOD], r'b\.jsonl:3 answers "1" again, after .*b\.jsonl:1; keep one'),
        ([GOOD], r'b\.jsonl lacks 1 of the 2 prompts of .*a\.jsonl, first "2"; let both methods'),
        ([GOOD, {"prompt": "2", "text": ""}, {"prompt": "3", "text": ""}], r'a\.jsonl lacks 1 of the 3 prompts.*"3"'),
    ],
)
def test_files_that_do_not_belong_together(rows: list[Any], message: str, tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", GOOD, {"prompt": "2", "text": "y"})
    with pytest.raises(DataError, match=message):
        match_answers(a, write(tmp_path / "b.jsonl", *rows))


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(DataError, match=r"no answers file at .*none"):
        match_answers(a, tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(DataError, match=r"b\.jsonl:1 holds the byte 0xff, which is not UTF-8"):
        match_answers(a, tmp_path / "b.jsonl")


def test_a_cell_of_a_comparison_holds_answers_too(tmp_path: Path) -> None:
    examples = [{"id": 0, "prompt": "1", "context": "<user>1", "answer": "one", "score": 1.0}]
    (tmp_path / "seed-0.json").write_text(json.dumps({"format": "fusionroute.cell", "examples": examples}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "1", "text": "eins"}))
    assert match_answers(tmp_path / "seed-0.json", tmp_path / "b.jsonl") == [Item("1", "one", "eins")]
    assert match_answers(tmp_path / "b.jsonl", tmp_path / "seed-0.json") == [Item("1", "eins", "one")]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(DataError, match=r"other.json is no cell of a comparison"):
        match_answers(tmp_path / "other.json", tmp_path / "b.jsonl")


def cell(path: Path, *answers: tuple[str, str], **more: Any) -> Path:
    examples = [{"prompt": prompt, "answer": answer} for prompt, answer in answers]
    path.write_text(json.dumps({"format": "fusionroute.cell", **more, "examples": examples}))
    return path


def test_a_prompt_that_a_task_asks_again_is_matched_by_its_order(tmp_path: Path) -> None:
    a = cell(tmp_path / "a.json", ("1", "first"), ("2", "x"), ("1", "second"))
    b = cell(tmp_path / "b.json", ("2", "y"), ("1", "erste"), ("1", "zweite"))
    assert match_answers(a, b) == [Item("1", "first", "erste"), Item("2", "x", "y"), Item("1", "second", "zweite")]
    once = cell(tmp_path / "once.json", ("1", "erste"), ("2", "y"))
    with pytest.raises(DataError, match=r'once.json lacks 1 of the 3 prompts of .*a.json, first "1" \(asked 2 times\)'):
        match_answers(a, once)


def test_a_file_is_named_by_what_it_holds(tmp_path: Path) -> None:
    a = cell(tmp_path / "seed-0.json", ("1", "x"), method="FusionRoute", task="chat", seed=0)
    b = cell(tmp_path / "any-seed.json", ("1", "x"), method="averaging", task="chat", seed=None)
    lines = write(tmp_path / "theirs.jsonl", GOOD)
    origin = read_origin(a)
    assert (origin.method, origin.task, origin.seed, origin.file) == ("FusionRoute", "chat", 0, "seed-0.json")
    assert origin.sha256 == hashlib.sha256(a.read_bytes()).hexdigest()
    assert origin.record()["name"] == "FusionRoute, seed 0"
    assert read_origin(lines).record() == {
        "name": "theirs", "file": "theirs.jsonl", "sha256": hashlib.sha256(lines.read_bytes()).hexdigest(),
        "method": None, "task": None, "seed": None,
    }  # fmt: skip
    assert title(a, b) == "FusionRoute, seed 0 against averaging on chat"
    assert title(a, lines) == "FusionRoute, seed 0 against theirs"
    (tmp_path / "other").mkdir()
    same = cell(tmp_path / "other" / "seed-0.json", ("1", "y"), method="FusionRoute", task="chat", seed=0)
    assert title(a, same) == f"{a} against {same}"
