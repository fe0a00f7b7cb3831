"""Whatever the text and whatever the tokenizer: exact bytes, exact boundaries, no control token, no mass lost."""

import unicodedata
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import tiny_tokenizers
from fusionroute.models.prompt import PromptFormat
from fusionroute.models.vocabulary import Pieces, UnionVocabulary, control_tokens
from fusionroute.models.vocabulary.writing import BYTE_TOKEN

quick = settings(
    derandomize=True, database=None, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)

SPELLINGS = [*tiny_tokenizers.SPECIAL, "<0x41>", "<0xE2>", "<|eot_id|>", "<think>", "▁", "Ġ"]
CLUSTERS = [
    "👨‍👩‍👧‍👦",
    "🏳️‍🌈",
    "👍🏽",
    "e\u0301\u0323",
    "मनीष",
    "שָׁלוֹם",
    "مَرْحَبًا",
    "\u202eabc\u202c",
    "한국어",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞",
    "\r\n",
    "\u00a0",
    "\u3000",
]
characters = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
words = st.sampled_from(["the quick", " brown", "Incorrect", "  ", "\n\n", "12345", "Привет", "你好", "مرحبا"])
texts = st.lists(characters | words | st.sampled_from(SPELLINGS) | st.sampled_from(CLUSTERS), max_size=8).map("".join)
bytes_ = st.lists(texts.map(str.encode) | st.binary(max_size=5), max_size=4).map(b"".join)
names = pytest.mark.parametrize("name", tiny_tokenizers.ALL)


@cache
def pieces_of(name: str) -> Pieces:
    return Pieces(tiny_tokenizers.ALL[name](), name=name)


@cache
def union_of(*members: str) -> UnionVocabulary:
    return UnionVocabulary([pieces_of(name) for name in members])


@names
@quick
@given(text=bytes_)
def test_any_bytes_round_trip_and_every_boundary_is_where_the_bytes_say(name: str, text: bytes) -> None:
    pieces = pieces_of(name)
    ids = pieces.encode(text)
    assert pieces.text(ids) == text
    starts = pieces.starts(ids)
    assert len(starts) == len(ids)
    ends = [*starts[1:], len(text)]
    assert [text[start:end] for start, end in zip(starts, ends, strict=False)] == [pieces.bytes_of[id] for id in ids]
    assert not set(ids) & (pieces.end_ids | pieces.control_ids)
    assert pieces.encode(text) == ids


@names
@quick
@given(text=bytes_, more=bytes_)
def test_a_text_that_grows_keeps_its_bytes_wherever_it_is_cut(name: str, text: bytes, more: bytes) -> None:
    pieces = pieces_of(name)
    for cut in {len(text), len(text) // 2}:
        ids = pieces.encode(text[:cut])
        assert pieces.text(ids + pieces.encode(text[cut:] + more)) == text + more
        assert pieces.text(pieces.encode(text + more)).startswith(pieces.text(ids))


@names
@quick
@given(ids=st.lists(st.integers(0, 379), max_size=12))
def test_what_any_tokens_write_reads_back_to_the_same_bytes(name: str, ids: list[int]) -> None:
    pieces = pieces_of(name)
    ids = [id % pieces.vocabulary_size for id in ids]
    assert pieces.text(pieces.encode(pieces.text(ids))) == pieces.text(ids)


@names
@quick
@given(text=texts, at=st.integers(0, 3))
def test_what_a_message_says_never_becomes_a_control_token(name: str, text: str, at: int) -> None:
    tokenizer = tiny_tokenizers.ALL[name]()
    assume(name != "unigram" or not BYTE_TOKEN.search(text))  # there the tokenizer itself reads <0x41> as that byte
    spelling = sorted(control_tokens(tokenizer).values())[at]
    ids = PromptFormat(tokenizer, "chat_template").encode(text + spelling + text)
    controls = [id for id in ids if id in control_tokens(tokenizer)]
    assert controls == tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    said = pieces_of(name).text(ids)
    assert said.decode().removeprefix(" ") in _as_read(text + spelling + text)


def _as_read(text: str) -> set[str]:
    """The text itself; normalised, where the tokenizer does so; with its marks of spaces read as spaces."""
    normal = unicodedata.normalize("NFC", text)
    plain = {text, normal, text.replace("▁", " "), normal.replace("▁", " ")}
    return plain | {each.removeprefix(" ") for each in plain}


@pytest.mark.parametrize("members", [("byte_level", "llama2"), ("mistral", "llama3", "unigram"), ("program", "gemma")])
@quick
@given(seed=st.integers(0, 2**31))
def test_what_members_say_adds_up_over_symbols(members: tuple[str, ...], seed: int) -> None:
    union, generator = union_of(*members), torch.Generator().manual_seed(seed)
    for at, member in enumerate(union.members):
        logits = 8 * torch.randn(member.vocabulary_size, dtype=torch.float64, generator=generator)
        mapped = torch.zeros(union.size + 1, dtype=torch.float64)
        mapped.index_add_(0, union.maps[at], logits.softmax(0))
        assert mapped.sum().item() == pytest.approx(1)
        symbol = int(mapped[: union.end].argmax())
        writing = [id for id, piece in enumerate(member.bytes_of) if piece == union.bytes_of(symbol)]
        assert mapped[symbol].item() == pytest.approx(logits.softmax(0)[writing].sum().item())


@pytest.mark.parametrize(
    "train", [tiny_tokenizers.byte_level_of, tiny_tokenizers.sentencepiece_of, tiny_tokenizers.unigram_of]
)
@quick
@given(corpus=st.lists(texts, min_size=3, max_size=6), size=st.integers(280, 400), text=bytes_)
def test_tokenizers_trained_on_anything_are_exact(
    train: Callable[[int, list[str]], Tokenizer], corpus: list[str], size: int, text: bytes
) -> None:
    pieces = Pieces(tiny_tokenizers.wrap(train(size, [*corpus, "some words that every corpus has"])))
    for each in (text, *(part.encode() for part in corpus)):
        ids = pieces.encode(each)
        assert pieces.text(ids) == each
        assert not set(ids) & (pieces.end_ids | pieces.control_ids)
