import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import tiny
from fusionroute.errors import DataError
from fusionroute.models.prompt import PromptFormat
from fusionroute.training.data.preferences import prepare_pairs

QUESTION = {"role": "user", "content": "hi"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("ho", "hum"))
PAIR = {"prompt": "hi", "chosen": "ho", "rejected": "hum"}


def plain() -> PromptFormat:
    return PromptFormat(tiny.tokenizer())


def chat() -> PromptFormat:
    return PromptFormat(tiny.tokenizer(), "chat_template")


def ids(text: str) -> list[int]:
    return tiny.tokenizer()(text, add_special_tokens=False).input_ids


def test_a_pair_is_two_sequences_the_chosen_one_first() -> None:
    rows = [PAIR, {"prompt": "1+1=", "chosen": "2", "rejected": "11"}]
    dataset, report = prepare_pairs(rows, plain(), max_length=50)
    texts = [("hi", "ho"), ("hi", "hum"), ("1+1=", "2"), ("1+1=", "11")]
    assert dataset[:] == {
        "input_ids": [[*ids(prompt + answer), tiny.EOS] for prompt, answer in texts],
        "prompt_length": [2, 2, 4, 4],
        "row": [1, 1, 2, 2],
    }
    assert (report.kept, report.answer_tokens, report.dropped, report.cut) == (2, 3 + 4 + 2 + 3, 0, 0)
    assert str(report) == "2 preference pairs with 12 answer tokens"


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": [QUESTION], "chosen": "ho", "rejected": "hum"},
        {"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "hi", "chosen": [GOOD], "rejected": "hum"},
        {"chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
        {"prompt": None, "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
        {"prompt": "not read", "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD], "score": 1.5},
        {"prompt": [QUESTION], "chosen": [QUESTION, GOOD], "rejected": [{**QUESTION, "name": "me"}, BAD]},
    ],
)
def test_every_form_gives_the_same_tokens(row: dict[str, Any]) -> None:
    dataset, _ = prepare_pairs([row], chat(), max_length=50)
    assert dataset["input_ids"][:] == [[*ids(f"<user>hi<assistant>{answer}"), tiny.EOS] for answer in ("ho", "hum")]
    assert dataset["prompt_length"][:] == [len(ids("<user>hi<assistant>"))] * 2


def test_conversations_share_all_turns_but_the_last() -> None:
    before = [QUESTION, GOOD, {"role": "user", "content": "why"}]
    rows = [{"chosen": [*before, GOOD], "rejected": [*before, BAD]}]
    expected = [*ids("<user>hi<assistant>ho<eos><user>why<assistant>ho"), tiny.EOS]
    for source in (rows, Dataset.from_list(rows)):
        dataset, _ = prepare_pairs(source, chat(), max_length=80)
        assert dataset[0]["input_ids"] == expected


def test_pairs_that_teach_nothing_are_dropped_and_counted() -> None:
    rows = [
        {"prompt": "hi", "chosen": "ho", "rejected": " "},
        {"prompt": "hi", "chosen": "", "rejected": "ho"},
        {"prompt": "hi", "chosen": "ho", "rejected": "ho"},
        {"prompt": "hi", "chosen": "12345678", "rejected": "12345679"},  # the same where they are cut
        {"prompt": "hi", "chosen": "1234567", "rejected": "123456"},  # cut alone tells them apart from the end
        {"prompt": "123456789", "chosen": "1", "rejected": "2"},
        {"prompt": "no", "chosen": "ho", "rejected": "hum"},
        {"prompt": "hi", "chosen": "87654321", "rejected": "123"},
    ]
    dataset, report = prepare_pairs(rows, plain(), max_length=9, exclude=[{"prompt": "no"}])
    assert dataset["row"][:] == [5, 5, 8, 8]
    assert dataset["input_ids"][:] == [
        ids("hi1234567"),
        [*ids("hi123456"), tiny.EOS],
        ids("hi8765432"),
        [*ids("hi123"), tiny.EOS],
    ]
    assert (report.kept, report.cut) == (2, 2)
    assert (report.empty, report.identical, report.too_long, report.excluded, report.dropped) == (2, 2, 1, 1, 6)
    assert str(report) == (
        "2 preference pairs with 25 answer tokens; 2 answers cut at 9 tokens; "
        "1 dropped because the prompt alone fills 9 tokens; 2 dropped because the answer is empty; "
        "1 dropped because their prompts are in the given data; 2 dropped because both answers are the same"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "a", "completion": "b"},
            "row 2: it has the fields 'prompt', 'completion'; allowed are 'prompt', 'c",
        ),
        ({"prompt": "a", "chosen": "b"}, "row 2: it has the fields 'prompt', 'chosen'"),
        ({"chosen": "b", "rejected": "c"}, "row 2: it has the fields 'chosen', 'rejected'; allowed are 'prompt'"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "row 2: it has the fields 'chosen', 'rejected'"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "row 2: chosen must be text or a list of messages; got int"),
        ({"prompt": "a", "chosen": [QUESTION], "rejected": "c"}, "one message of the assistant; got 'user' as chosen"),
        ({"chosen": [QUESTION, GOOD], "rejected": [GOOD, BAD]}, "row 2: chosen and rejected differ before their last"),
        ({"chosen": [QUESTION, GOOD], "rejected": [BAD]}, "row 2: chosen and rejected differ before their last"),
        (
            {"chosen": [QUESTION, GOOD], "rejected": "hum"},
            "row 2: rejected must be a list of messages; got str",
        ),
        ({"chosen": [QUESTION, GOOD], "rejected": [QUESTION, QUESTION]}, "got 'user' as rejected"),
        (
            {"prompt": [BAD, QUESTION], "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
            "row 2: prompt is not what chosen and rejected share",
        ),
        ("text", "row 2: an example is a mapping"),
    ],
)
def test_a_bad_row_is_named(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare_pairs([PAIR, row], chat(), max_length=50)


def test_files_limits_and_nothing_left(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (PAIR, PAIR, PAIR)))
    assert prepare_pairs(path, plain(), 50, limit=2)[0]["row"][:] == [1, 1, 2, 2]
    with pytest.raises(DataError, match=r"nothing is left of the 3 rows of .*pairs\.jsonl: 0 preference pairs"):
        prepare_pairs(path, plain(), max_length=2)
    with pytest.raises(DataError, match="the given data holds no rows"):
        prepare_pairs([], plain(), max_length=50)
