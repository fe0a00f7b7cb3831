"""Questions from rows of any allowed form, and as token ids."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tiny
from fusionroute.errors import DataError
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.questions.questions import Encoded, Question, encode_questions, fitting, read_questions

ASKED = [{"role": "user", "content": "2+2?"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "sky?", "answer": "blue", "options": ["red", "blue"], "task": "colours", "source": "not read"},
    {"prompt": ASKED, "completion": "4"},
    {"messages": [*ASKED, {"role": "assistant", "content": "four"}], "task": "sums"},
    {"messages": ASKED, "answer": "4", "options": ["4", "5"]},
]
QUESTIONS = [
    Question("sky?", "blue", ("red", "blue"), "colours"),
    Question(ASKED, "4"),
    Question(ASKED, "four", task="sums"),
    Question(ASKED, "4", ("4", "5")),
]


def written(rows: list[Any], path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def test_every_allowed_form_is_read(tmp_path: Path) -> None:
    assert read_questions(ROWS) == QUESTIONS
    assert read_questions(written(ROWS, tmp_path / "q.jsonl")) == QUESTIONS
    assert read_questions(str(tmp_path / "q.jsonl"), limit=2) == QUESTIONS[:2]
    assert read_questions(written([ROWS[0], {"prompt": "a", "answer": "b"}], tmp_path / "q.parquet")) == [
        QUESTIONS[0],
        Question("a", "b"),  # parquet fills absent fields with None
    ]


def test_what_was_read_can_be_written_and_read_again() -> None:
    assert read_questions([question.as_row() for question in QUESTIONS]) == QUESTIONS


def test_text_is_the_prompt_in_plain_words() -> None:
    assert [question.text for question in QUESTIONS[:2]] == ["sky?", "2+2?"]
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}
    assert Question([system, user], "4").text == "system: Be brief.\n\nuser: 2+2?"
    assert Question([system], "4").text == "system: Be brief."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "row 2: it has the fields 'prompt'; allowed are 'prompt'"),
        ({"question": "a", "answer": "b"}, "it has the fields 'question', 'answer'; allowed are"),
        ({}, r"it has the fields \(none\)"),
        (["a", "b"], "row 2: a question is a mapping with .*; got list"),
        ({"prompt": "a", "answer": 3}, "the answer must be text; got 3"),
        ({"prompt": "a", "answer": " "}, "the answer is empty"),
        ({"prompt": "a", "answer": "b", "options": ["c", "d"]}, r"the answer 'b' is none of the options \['c', 'd'\]"),
        ({"prompt": "a", "answer": "b", "options": ["b"]}, r"two or more different texts; got \['b'\]"),
        ({"prompt": "a", "answer": "b", "options": ["b", "b"]}, "two or more different texts"),
        ({"prompt": "a", "answer": "b", "options": ["b", ""]}, "two or more different texts"),
        ({"prompt": "a", "answer": "b", "options": "bc"}, "options must be a list of texts; got 'bc'"),
        ({"prompt": "a", "answer": "b", "options": ["b", 1]}, "an option must be text; got 1"),
        ({"prompt": "a", "answer": "b", "task": 1}, "task must be text; got 1"),
        ({"prompt": [], "answer": "b"}, r"prompt must be a list of messages; got \[\]"),
        ({"prompt": [{"role": "user"}], "answer": "b"}, "prompt must hold messages with 'role' and 'content' as text"),
        ({"messages": ASKED}, "it has the fields 'messages'; allowed are"),
    ],
)
def test_rows_of_another_form_are_named(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_questions([{"prompt": "fine", "answer": "yes"}, row])


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file of questions at .*nowhere\.jsonl; give one that ends in \.jsonl"):
        read_questions(tmp_path / "nowhere.jsonl")
    (tmp_path / "q.txt").write_text("?")
    with pytest.raises(DataError, match=r"is not of a known kind; give a file that ends in \.jsonl, \.json, \.parquet"):
        read_questions(tmp_path / "q.txt")
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{half')
    with pytest.raises(DataError, match=r"q\.jsonl:2 is not valid JSON"):
        read_questions(tmp_path / "q.jsonl")
    (tmp_path / "q.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(DataError, match="which is not UTF-8"):
        read_questions(tmp_path / "q.jsonl")
    (tmp_path / "q.parquet").write_bytes(b"half")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_questions(tmp_path / "q.parquet")
    with pytest.raises(DataError, match="holds no questions"):
        read_questions([])
    with pytest.raises(DataError, match="questions are a file or a list of rows; got dict"):
        read_questions({"prompt": "a", "answer": "b"})  # type: ignore[arg-type]


def test_questions_as_token_ids() -> None:
    tokenizer = tiny.tokenizer()  # a token per byte

    def ids(text: str) -> list[int]:
        return list(tokenizer(text).input_ids)

    assert encode_questions(QUESTIONS[:1], PromptFormat(tokenizer)) == [
        Encoded(ids("sky?"), ([*ids("red"), tiny.EOS], [*ids("blue"), tiny.EOS]), 1)
    ]
    chat = encode_questions(QUESTIONS, PromptFormat(tokenizer, "chat_template"))
    assert chat[1] == Encoded(ids("<user>2+2?<assistant>"), ([*ids("4"), tiny.EOS],), 0)
    assert [each.right for each in chat] == [1, 0, 0, 0]
    assert [each.longest for each in chat] == [11, 8, 11, 8]


def test_questions_that_do_not_fit() -> None:
    prompt_format = PromptFormat(tiny.tokenizer(), "chat_template")
    assert len(encode_questions(QUESTIONS, prompt_format, 11)) == 4
    with pytest.raises(
        DataError, match=r"2 of 4 questions do not fit into 10 tokens .*\(the first is number 1, with 11\)"
    ):
        encode_questions(QUESTIONS, prompt_format, 10)
    kept = fitting(QUESTIONS, prompt_format, 10)
    assert kept == [QUESTIONS[1], QUESTIONS[3]]
    assert len(encode_questions(kept, prompt_format, 10)) == 2
    with pytest.raises(DataError, match="none of the 4 questions fits into 7 tokens"):
        fitting(QUESTIONS, prompt_format, 7)


def test_questions_that_cannot_be_rendered() -> None:
    with pytest.raises(DataError, match="question 2: chat messages need a prompt format"):
        encode_questions(QUESTIONS, PromptFormat(tiny.tokenizer()))
    endless = tiny.tokenizer()
    endless.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        encode_questions(QUESTIONS[:1], PromptFormat(endless))
