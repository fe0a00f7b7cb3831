"""The text of an answer in the making, cut by token."""

import pytest

import tiny
from fusionroute.answering import TextByToken
from fusionroute.config import GenerationSettings
from fusionroute.engine.sequence import Sequence, TraceRecord

TEXT = "aé🙂b, stop here"


def sequence(stop: tuple[str, ...] = ()) -> Sequence:
    return Sequence([5], GenerationSettings(stop=stop, max_new_tokens=100), tokenizer=tiny.tokenizer())


def ids(text: str) -> list[int]:
    return list(tiny.tokenizer()(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("stop", [(), ("stop",), ("st", "toads")])
def test_joined_it_is_the_text_and_every_token_comes_once(at_once: int, stop: tuple[str, ...]) -> None:
    answer = sequence(stop)
    cut, found = TextByToken(answer), []
    tokens = ids(TEXT)
    for begin in range(0, len(tokens), at_once):
        for token in tokens[begin : begin + at_once]:
            answer.append(TraceRecord(token, "model"))
        found += cut.new()
    answer.finish("length")
    rest = cut.rest()
    assert (
        "".join(text for _, text in found) + rest
        == answer.text
        == (TEXT.partition("stop" if "stop" in stop else "st" if stop else "\0")[0])
    )
    assert [record for record, _ in found] == answer.trace
    assert cut.rest() == ""


def test_text_belongs_to_the_token_that_completes_it() -> None:
    answer = sequence()
    cut = TextByToken(answer)
    for token in ids("aé🙂b"):
        answer.append(TraceRecord(token, "model"))
    assert [text for _, text in cut.new()] == ["a", "", "é", "", "", "", "🙂", "b"]


def test_what_may_still_become_a_stop_string_waits() -> None:
    answer = sequence(("stop",))
    cut = TextByToken(answer)
    for token in ids("ast"):
        answer.append(TraceRecord(token, "model"))
    assert [text for _, text in cut.new()] == ["a", "", ""]
    answer.append(TraceRecord(ids("x")[0], "model"))
    assert [text for _, text in cut.new()] == ["stx"]
