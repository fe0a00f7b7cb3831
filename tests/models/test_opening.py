"""Messages that end with the beginning of the answer."""

import pytest

import tiny_ensemble
from fusionroute.errors import PromptError
from fusionroute.models.member import Member
from fusionroute.models.opening import OpenedFormat, is_opened
from fusionroute.models.prompt import CHAT_TEMPLATE, PromptFormat

ASKED = [{"role": "user", "content": "hello"}]
BEGUN = [*ASKED, {"role": "assistant", "content": "hell<eos>o wör"}]


@pytest.mark.parametrize("name", tiny_ensemble.WORDS)
def test_the_beginning_is_read_as_the_answer_is(name: str) -> None:
    pieces = tiny_ensemble.known(name).member.pieces
    opened, plain = OpenedFormat(pieces, CHAT_TEMPLATE), PromptFormat(pieces.tokenizer, CHAT_TEMPLATE)
    asked = plain.encode(ASKED)
    ids = opened.encode(BEGUN)
    assert ids[: len(asked)] == asked == opened.encode(ASKED) == opened.encode("hello")
    assert pieces.text(ids[len(asked) :]) == "hell<eos>o wör".encode()
    assert not pieces.end_ids & set(ids[len(asked) :])
    with pytest.raises(PromptError, match="assistant"):
        plain.encode(BEGUN)


def test_a_member_made_of_its_parts_goes_on_from_a_beginning_too() -> None:
    made = tiny_ensemble.known("pieces")
    member = Member.of("pieces", made.member.model, made.tokenizer, CHAT_TEMPLATE)
    assert member.prompt.encode(BEGUN) == OpenedFormat(member.pieces, CHAT_TEMPLATE).encode(BEGUN)


def test_messages_that_a_template_refuses_are_told_by_model() -> None:
    made = tiny_ensemble.known("other")
    made.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    )
    opened = OpenedFormat(made.member.pieces, CHAT_TEMPLATE)
    assert opened.encode(ASKED)
    assert not opened.refuses(ASKED)
    assert opened.refuses([{"role": "system", "content": "be brief"}, *ASKED])
    with pytest.raises(PromptError, match=r"template of 'other' refuses these messages .*no system role"):
        opened.encode([{"role": "system", "content": "be brief"}, *ASKED])


def test_only_messages_can_be_opened() -> None:
    assert is_opened(BEGUN)
    for prompt in (None, "", "hi", [], [1, 2], ASKED, [*ASKED, {"role": "assistant", "content": ""}]):
        assert not is_opened(prompt)  # type: ignore[arg-type]
