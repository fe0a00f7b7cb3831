import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

import tiny
from fusionroute.errors import DataError
from fusionroute.models.prompt import PromptFormat
from fusionroute.training.data.examples import prepare

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
ROW = {"prompt": "1+1=", "completion": "2"}


def plain() -> PromptFormat:
    return PromptFormat(tiny.tokenizer())


def chat() -> PromptFormat:
    return PromptFormat(tiny.tokenizer(), "chat_template")


def ids(text: str) -> list[int]:
    return tiny.tokenizer()(text, add_special_tokens=False).input_ids


def test_prompt_then_answer_then_end() -> None:
    dataset, report = prepare([ROW], plain(), max_length=50)
    assert dataset[:] == {"input_ids": [[*ids("1+1="), *ids("2"), tiny.EOS]], "prompt_length": [4], "row": [1]}
    assert (report.kept, report.cut, report.dropped, report.answer_tokens) == (1, 0, 0, 2)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"prompt": "hi", "completion": "ho"},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"prompt": CHAT[:1], "completion": "ho"},
        {"prompt": None, "completion": None, "messages": CHAT},  # how parquet writes what a row does not have
        {"prompt": "hi", "completion": "ho", "source": 7},
    ],
)
def test_every_form_gives_the_same_tokens(row: dict[str, Any]) -> None:
    dataset, _ = prepare([row], chat(), max_length=50)
    assert dataset[0]["input_ids"] == [*ids("<user>hi<assistant>ho"), tiny.EOS]
    assert dataset[0]["prompt_length"] == len(ids("<user>hi<assistant>"))


def test_all_tokens_leaves_out_only_the_first() -> None:
    dataset, report = prepare([ROW], plain(), max_length=50, all_tokens=True)
    assert dataset["prompt_length"][:] == [1]
    assert report.answer_tokens == 5


def test_long_examples_are_cut_or_dropped_and_counted() -> None:
    rows = [ROW, {"prompt": "1+1=", "completion": "222222"}, {"prompt": "123456", "completion": "7"}]
    dataset, report = prepare([*rows, {"prompt": "1+1=", "completion": " "}], plain(), max_length=6)
    assert [len(row) for row in dataset["input_ids"]] == [6, 6]
    assert dataset[1]["input_ids"][-2:] == ids("22")
    assert dataset["row"][:] == [1, 2]
    assert (report.kept, report.cut, report.too_long, report.empty, report.dropped) == (2, 1, 1, 1, 2)
    assert str(report) == (
        "2 examples with 4 tokens to learn; 1 answers cut at 6 tokens; "
        "1 dropped because the prompt alone fills 6 tokens; 1 dropped because the answer is empty"
    )


def test_of_several_turns_the_last_answer_is_learned() -> None:
    turns = [*CHAT, {"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]
    dataset, report = prepare([{"messages": turns}], chat(), max_length=50)
    assert dataset[0]["input_ids"] == [*ids("<user>hi<assistant>ho<eos><user>why<assistant>so"), tiny.EOS]
    assert report.answer_tokens == len("so") + 1


def test_files_and_live_rows_give_the_same(tmp_path: Path) -> None:
    rows = [ROW, {"prompt": "2+2=", "completion": "4"}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    sources = [rows, Dataset.from_list(rows), tmp_path / "a.jsonl", str(tmp_path / "a.parquet")]
    made = [prepare(source, plain(), 50)[0][:] for source in sources]
    assert all(other == made[0] for other in made)
    assert prepare(rows, plain(), 50, limit=1)[1].kept == 1


def test_chats_of_a_dataset_are_read_like_live_ones(tmp_path: Path) -> None:
    rows = [{"messages": CHAT, "tags": ["a"]}, {"messages": [{"role": "system", "content": "be kind"}, *CHAT]}]
    Dataset.from_list(rows).to_parquet(tmp_path / "chats.parquet")
    expected = prepare(rows, chat(), 50)[0][:]
    assert prepare(Dataset.from_list(rows), chat(), 50)[0][:] == expected
    assert prepare(tmp_path / "chats.parquet", chat(), 50)[0][:] == expected


def test_prompts_of_a_test_set_are_left_out(tmp_path: Path) -> None:
    tests = [{"prompt": "hi"}, {"messages": CHAT[:1]}, {"messages": CHAT}, {"prompt": "2+2=", "completion": "5"}]
    (tmp_path / "tests.jsonl").write_text("\n".join(json.dumps(row) for row in tests))
    longer = [*CHAT, {"role": "user", "content": "hi"}, CHAT[1]]
    rows = [{"messages": CHAT}, ROW, {"prompt": "2+2=", "completion": "4"}, {"messages": longer}]
    rows += [{"prompt": CHAT[:1], "completion": "hey"}, {"prompt": "hi!", "completion": "ho"}]
    dataset, report = prepare(rows, chat(), 60, exclude=tmp_path / "tests.jsonl")
    assert dataset["row"][:] == [2, 4, 6]
    assert (report.excluded, report.dropped, report.kept) == (3, 3, 3)
    assert str(report).endswith(f"; 3 dropped because their prompts are in {tmp_path / 'tests.jsonl'}")
    with pytest.raises(
        DataError, match=r"nothing is left of the 1 rows of the given data: .* prompts are in the given data"
    ):
        prepare([ROW], plain(), 50, exclude=[ROW])


def test_a_bad_row_of_a_test_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "tests.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps({"question": "1+1="}))
    with pytest.raises(DataError, match=r"tests\.jsonl, row 2: it has the fields 'question'; allowed are 'prompt' \("):
        prepare([ROW], plain(), 50, exclude=tmp_path / "tests.jsonl")
    with pytest.raises(DataError, match=r"no data file at .*missing\.jsonl"):
        prepare([ROW], plain(), 50, exclude=tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "answer": "b"}, "row 2: it has the fields 'question', 'answer'; allowed are 'prompt'"),
        ({"prompt": "a"}, "row 2: it has the fields 'prompt'"),
        ({"prompt": 3, "completion": "b"}, "row 2: prompt must be text or a list of messages; got int"),
        ({"prompt": "a", "completion": 3}, "row 2: completion must be text or a list of messages; got int"),
        ({"prompt": "a", "completion": CHAT}, "one message of the assistant; got 'user', 'assistant'"),
        ({"messages": "hi"}, "row 2: messages must be a list of messages; got str"),
        ({"messages": CHAT[:1]}, "messages holds 1"),
        ({"messages": [*CHAT, CHAT[0]]}, "one message of the assistant; got 'user'"),
        ({"messages": ["hi", "ho"]}, "'role' and 'content' as text; got 'hi'"),
        ({"messages": [{"role": "user", "content": None}, CHAT[1]]}, "'role' and 'content' as text"),
        ({"prompt": "", "completion": "b"}, "row 2: the prompt is empty"),
        ("text", "row 2: an example is a mapping"),
    ],
)
def test_a_bad_row_is_named(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare([ROW, row], chat(), max_length=50)


def test_messages_without_a_prompt_format_are_refused() -> None:
    with pytest.raises(DataError, match="row 1: chat messages need a prompt format"):
        prepare([{"messages": CHAT}], plain(), max_length=50)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.jsonl").write_text(json.dumps(ROW) + "\n{oops\n")
    (tmp_path / "broken.parquet").write_text("no")
    (tmp_path / "data.csv").write_text("a,b")
    expected = {
        "missing.jsonl": "no data file at .*missing.jsonl",
        "empty.jsonl": "holds no rows",
        "broken.jsonl": "broken.jsonl:2 is not valid JSON",
        "broken.parquet": "cannot be read as parquet",
        "data.csv": "not of a known kind",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            prepare(tmp_path / name, plain(), max_length=50)


def test_other_sources_are_refused() -> None:
    with pytest.raises(DataError, match="no data file at owner/name"):  # tests run without a network
        prepare("owner/name", plain(), max_length=50)
    with pytest.raises(DataError, match="a list of rows; got dict"):
        prepare({"train": [ROW]}, plain(), max_length=50)
    with pytest.raises(DataError, match="nothing is left of the 1 rows"):
        prepare([ROW], plain(), max_length=4)
