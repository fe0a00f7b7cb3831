import pytest
from tokenizers import pre_tokenizers

import tiny_tokenizers
from fusionroute.models.vocabulary.backend import settings_of
from fusionroute.models.vocabulary.writing import (
    BYTE_ALPHABET,
    byte_level,
    marks_in,
    with_byte_tokens,
    writer_by_spelling,
    writer_of,
)


def test_the_byte_alphabet_is_that_of_byte_level_tokenizers() -> None:
    assert sorted(BYTE_ALPHABET) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_ALPHABET.values()) == list(range(256))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "".join(map(chr, range(0x20, 0x250))) + "你🙂\n\t"
    ((spelled, _),) = split.pre_tokenize_str(text)
    assert byte_level(spelled) == text.encode()


def test_a_spelling_outside_the_alphabet_writes_itself() -> None:
    assert byte_level("Ġthe") == b" the"
    assert byte_level("▁the") == "▁the".encode()


@pytest.mark.parametrize(
    ("token", "written"),
    [("<0xE2>", b"\xe2"), ("<0x0a>", b"\n"), ("▁the▁", b" the "), ("<0x41", b"<0x41"), ("é", "é".encode())],
)
def test_byte_tokens_and_marks_of_spaces(token: str, written: bytes) -> None:
    assert with_byte_tokens({"▁": " "})(token) == written


def test_the_manner_is_told_from_what_the_tokenizer_says_of_itself() -> None:
    assert writer_of(settings_of(tiny_tokenizers.llama3())) is byte_level
    for made in (tiny_tokenizers.llama2(), tiny_tokenizers.unigram()):
        writer = writer_of(settings_of(made))
        assert writer is not None
        assert writer("▁<0x41>") == b" <0x41>"
        assert marks_in(settings_of(made)) == {"▁": " "}


def test_the_manner_of_a_program_is_told_from_its_tokens() -> None:
    assert writer_by_spelling(BYTE_ALPHABET) is byte_level
    assert writer_by_spelling([b"a", b"\xff"]) is byte_level
    assert writer_by_spelling(["a", "b"]) is None
    writer = writer_by_spelling(tiny_tokenizers.BYTES)
    assert writer is not None
    assert writer("▁<0x41") == b" <0x41"
