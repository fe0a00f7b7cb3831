import unicodedata

import pytest

import tiny_tokenizers
from fusionroute.errors import VocabularyError
from fusionroute.models.vocabulary import Pieces
from fusionroute.models.vocabulary.faithful import ORDINARY, change, check_faithful


def test_exact_reading_in_other_tokens_than_the_tokenizers_own_is_not_faithful() -> None:
    pieces = Pieces(tiny_tokenizers.byte_level())

    def byte_by_byte(text: str) -> list[int]:
        return [pieces.encode(bytes([byte]))[0] for byte in text.encode()]

    check_faithful("m", pieces.tokenizer, lambda text: pieces.encode(text.encode()), pieces.text)
    with pytest.raises(VocabularyError, match=r"'m' reads .*\(English\) in other tokens when it stands inside a text"):
        check_faithful("m", pieces.tokenizer, byte_by_byte, pieces.text)


def test_ordinary_texts_are_what_unicode_normalisation_leaves_alone() -> None:
    for text in ORDINARY.values():
        assert {unicodedata.normalize(form, text) for form in ("NFC", "NFKC")} == {text}


@pytest.mark.parametrize(
    ("text", "written", "words"),
    [
        ("An Ape", "an ape", "makes capital letters small"),
        ("Déjà vu", "Deja vu", "drops accents"),
        ("Déjà vu", "deja vu", "drops accents"),
        ("a  b\n", "a b ", "drops or merges spaces and line breaks"),
        ("a b", "ab", "drops or merges spaces and line breaks"),
        ("ﬁne", "fine", "normalises characters"),
        ("fine 🙂", "fine ", "has no tokens for some characters"),
        ("fine", "fins", "changes text"),
    ],
)
def test_what_happened_to_a_text_is_said_in_words(text: str, written: str, words: str) -> None:
    assert change(text, written).startswith(words)
