"""One model that follows another's text: its tokens, its places, what stays cached, and where it must stop."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionroute.config import GenerationSettings
from fusionroute.engine.reference import UncachedRunner
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.text_reader import Heard, TextReader, is_inside_character, lead_of
from fusionroute.errors import PromptError
from fusionroute.models.member import Member
from fusionroute.models.prompt import Prompt
from tests.tiny_members import byte_level, with_fallback

WORDS = [" catalogue", " the"]  # and every beginning of them


@pytest.fixture(scope="module")
def member() -> Member:
    return byte_level("m", WORDS).member


def sequence(prompt: Prompt | None = "hi", **options: object) -> Sequence:
    made = Sequence([1], GenerationSettings(**{"max_new_tokens": 100, **options}))
    made.prompt = prompt
    return made


def read(reader: TextReader, of: Sequence, text: bytes, since: int = 0) -> Heard:
    (heard,) = reader.read([of], [text], [since])
    assert heard is not None
    return heard


def plain(member: Member, text: bytes, prompt: str = "hi") -> torch.Tensor:
    """Logits before every token of the text and behind the last, by one plain pass."""
    ids = [*member.prompt.encode(prompt), *member.pieces.encode(text)]
    with torch.inference_mode():
        logits = member.model(torch.tensor([ids]), use_cache=False).logits[0].float()
    return logits[len(member.prompt.encode(prompt)) - 1 :]


def test_rows_are_what_a_plain_pass_says_before_each_own_token(member: Member) -> None:
    text = b" cat the catalogue"
    ids, expected = member.pieces.encode(text), plain(member, text)
    heard = read(TextReader(member, Runner), sequence(), text)
    assert heard.rows == {0: 0, 4: 1, 8: 2, 18: 3}
    torch.testing.assert_close(heard.logits, expected)
    probabilities = expected.softmax(-1)
    assert heard.probabilities[:-1] == pytest.approx([float(probabilities[at, id]) for at, id in enumerate(ids)])
    assert heard.is_first[:-1] == [int(expected[at].argmax()) == id for at, id in enumerate(ids)]
    ends = sorted(member.pieces.end_ids)
    assert heard.ending == pytest.approx(probabilities[:, ends].sum(-1).tolist())


@pytest.mark.parametrize("make_runner", [Runner, UncachedRunner])
def test_growing_text_whose_old_tokens_change(member: Member, make_runner: type) -> None:
    """`cat` becomes `catalogue` ten bytes later, far behind what was read before."""
    reader, one = TextReader(member, make_runner), sequence()
    texts = [b" the cat", b" the catal", b" the catalog", b" the catalogue", b" the cat", b"", b"x"]
    for text in texts:
        torch.testing.assert_close(read(reader, one, text).logits, plain(member, text))
    for before, text in pairwise([b"", b" the", b" the cat", b" the cat cat"]):
        heard = read(reader, one, text, since=len(before))
        torch.testing.assert_close(heard.logits, plain(member, text)[-len(heard.logits) :])
        assert min(heard.rows) >= len(before)


def test_only_what_is_new_is_read(member: Member) -> None:
    reader, one = TextReader(member, Runner), sequence()
    read(reader, one, b"the quick brown fox", since=10)
    before = reader.runner.tokens_read
    read(reader, one, b"the quick brown fox jumps", since=19)
    assert reader.runner.tokens_read - before == 1 + len(" jumps")  # the one before the first place is read again


def test_many_sequences_of_different_lengths_at_once(member: Member) -> None:
    reader = TextReader(member, Runner)
    texts, since = [b"", b" cat", b" the catalogue the cat", b"x" * 30], [0, 0, 14, 29]
    heard = reader.read([sequence() for _ in texts], texts, since)
    for text, offset, each in zip(texts, since, heard, strict=True):
        assert each is not None
        assert (min(each.rows), max(each.rows)) == (offset, len(text))
        torch.testing.assert_close(each.logits, plain(member, text)[-len(each.logits) :], atol=1e-4, rtol=1e-4)


def test_the_inside_of_a_character_is_no_place() -> None:
    reader = TextReader(byte_level("m", []).member, Runner)
    text = "é😀".encode()
    assert set(read(reader, sequence(), text).rows) == {0, 2, 6}
    assert set(read(reader, sequence(), text[:-1]).rows) == {0, 2}
    assert set(read(reader, sequence(), b"\xe9\xff!").rows) == {0, 1, 2, 3}  # strays, and so no character


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text(max_size=8), st.binary(max_size=3))
def test_places_are_ends_of_characters(text: str, stray: bytes) -> None:
    ends = {0}
    for character in text:
        ends.add(max(ends) + len(character.encode()))
    whole = text.encode()
    assert {at for at in range(len(whole) + 1) if not is_inside_character(whole, at)} == ends
    for at in range(len(whole) + len(stray) + 1):
        is_inside_character(whole + stray, at)  # whatever comes, no error


def test_a_text_that_does_not_fit_the_context_is_not_read() -> None:
    reader = TextReader(byte_level("m", [], max_position_embeddings=16).member, Runner)
    one, other = sequence("hi"), sequence("hi")
    heard = reader.read([one, other], [b"x" * 14, b"x" * 15], [13, 14])
    assert heard[0] is not None
    assert heard[1] is None
    assert (one.finish_reason, other.finish_reason) == (None, None)
    assert read(reader, other, b"x" * 14).rows  # a shorter one is


def test_a_model_that_fails_fails_its_sequence_alone() -> None:
    member = byte_level("m", []).member
    with torch.no_grad():
        member.model.model.embed_tokens.weight[member.pieces.id_of(b"!")] = float("nan")
    reader = TextReader(member, Runner)
    one, other = sequence(), sequence()
    heard = reader.read([one, other], [b"ok", b"no!"], [0, 0])
    assert heard[0] is not None
    assert heard[1] is None
    assert other.error is not None
    assert "'m'" in other.error


def test_a_prompt_known_only_as_token_ids_is_refused(member: Member) -> None:
    with pytest.raises(PromptError, match="speaks to one model only"):
        TextReader(member, Runner).prompt_ids(sequence(None))


def test_a_template_that_puts_a_space_before_answers() -> None:
    """As Mistral's: the space is the template's, not the answer's, and may be part of the first token."""
    known = with_fallback("m", [" cat"])
    known.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]"
        "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
    )
    member = Member.of("m", known.member.model, known.tokenizer, "chat_template")
    reader = TextReader(member, Runner)
    assert lead_of(member, sequence("hi")) == b" "
    begun = sequence([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ca"}])
    assert lead_of(member, begun) == b""
    heard = read(reader, sequence("hi"), b"cat!")
    assert heard.rows == {3: 0, 4: 1}
    assert reader._views  # its tokens: the prompt's, ` cat`, `!`
    (view,) = reader._views.values()
    assert member.pieces.text(view.token_ids[view.prompt_length :]) == b" cat!"


def test_release_frees_everything(member: Member) -> None:
    reader, one = TextReader(member, Runner), sequence()
    read(reader, one, b"x")
    reader.release(one)
    reader.release(one)
    assert not reader.runner.cache.lengths
