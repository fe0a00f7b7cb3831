import pytest

import tiny
from fusionroute.engine.text import GrowingText

TOKENIZER = tiny.tokenizer()


def push(text: GrowingText, string: str) -> list[str]:
    """What can be shown after every byte of ``string``."""
    shown = []
    for token in TOKENIZER(string).input_ids:
        text.push(token)
        shown.append(text.text[: text.settled])
    return shown


@pytest.mark.parametrize("string", ["plain", "naïve café", "日本語", "a👩‍👩‍👧b", "  spaces  \n\n"])
def test_grown_text_is_decoded_text_and_never_half_a_character(string: str) -> None:
    text = GrowingText(TOKENIZER)
    shown = push(text, string)
    assert text.text == string
    assert all(string.startswith(part) for part in shown)


def test_an_unfinished_character_appears_only_at_the_end() -> None:
    text = GrowingText(TOKENIZER)
    for token in TOKENIZER("aé").input_ids[:-1]:
        text.push(token)
    assert text.text == "a"
    text.finish()
    assert text.text == "a�"


def test_a_stop_string_cuts_the_text_where_it_begins() -> None:
    text = GrowingText(TOKENIZER, ("END", "\n\n"))
    push(text, "one EN two END three")
    assert text.is_stopped
    assert text.text == "one EN two "


def test_the_first_of_several_stop_strings_counts() -> None:
    text = GrowingText(TOKENIZER, ("cd", "bc"))
    push(text, "abcd")
    assert text.text == "a"


def test_what_may_become_a_stop_string_is_held_back() -> None:
    assert push(GrowingText(TOKENIZER, ("END",)), "xENy") == ["x", "x", "x", "xENy"]


def test_special_tokens_are_not_shown() -> None:
    text = GrowingText(TOKENIZER)
    for token in (*TOKENIZER("hi").input_ids, tiny.EOS):
        text.push(token)
    assert text.text == "hi"
