import random
from string import ascii_lowercase
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

import tiny
import tiny_tokenizers
from fusionroute.engine.text import INCOMPLETE, GrowingText

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


class Obvious(GrowingText):
    """Slow: decodes all that is held back at every token, and looks for every length of every stop string."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()):
        super().__init__(tokenizer, stop)
        self.ids: list[int] = []
        self.start = self.shown = 0

    def push(self, token_id: int) -> None:
        self.ids.append(token_id)
        grown = self._decode(self.ids[self.start :])
        if not grown.endswith(INCOMPLETE):
            self._add(grown[len(self._decode(self.ids[self.start : self.shown])) :])
            self.start, self.shown = self.shown, len(self.ids)

    def finish(self) -> None:
        known = self._decode(self.ids[self.start : self.shown])
        self._add(self._decode(self.ids[self.start :])[len(known) :])
        self.start = self.shown = len(self.ids)

    @property
    def settled(self) -> int:
        longest = max((len(stop) for stop in self.stop), default=1) - 1
        for size in range(min(longest, len(self.text)), 0, -1):
            if not self.is_stopped and any(stop.startswith(self.text[-size:]) for stop in self.stop):
                return len(self.text) - size
        return len(self.text)


@given(
    stop=st.lists(st.text("ab", min_size=1, max_size=7), max_size=4).map(tuple),
    string=st.text("aaabc", max_size=60),
)
@settings(deadline=None, max_examples=300)
def test_stop_strings_are_held_back_and_found_as_by_looking_for_each_of_them(
    stop: tuple[str, ...], string: str
) -> None:
    fast, slow = GrowingText(TOKENIZER, stop), Obvious(TOKENIZER, stop)
    for token in TOKENIZER(string).input_ids:
        fast.push(token)
        slow.push(token)
        assert (fast.text, fast.settled, fast.is_stopped) == (slow.text, slow.settled, slow.is_stopped)


def test_long_stop_strings_cost_no_more_than_short_ones() -> None:
    draw = random.Random(0)
    stop = tuple("".join(draw.choices(ascii_lowercase, k=1024)) for _ in range(16))
    text = GrowingText(TOKENIZER, stop)
    push(text, "A" * 1100)
    began = process_time()
    for _ in range(100):
        push(text, "A")
        assert text.settled == len(text.text)
    assert process_time() - began < 0.1  # seconds; 4 ms each where every length of every one is looked for
    push(text, stop[3][:700])
    assert text.settled == 1200


SPELLING = bytes_to_unicode()  # of bytes in byte-level vocabularies


def bytes_of(family: str) -> list[int]:
    """Tokens that are bytes, of all kinds: beginnings of characters, their rests, letters, such as never stand."""
    tokenizer = tiny_tokenizers.ALL[family]()
    ids = tokenizer.get_vocab()
    found = []
    for byte in b"\xe2\x82\xac\xf0\x9f\x99\x82\xff\xc3A":
        for name in (f"<0x{byte:02X}>", SPELLING[byte]):
            found += [ids[name]] if name in ids else []
    return found


@st.composite
def runs(draw: st.DrawFn, family: str) -> list[int]:
    """Mostly bytes, in runs longer than what is ever decoded at once; now and then any other token."""
    tokenizer, known = tiny_tokenizers.ALL[family](), bytes_of(family)
    any_token = st.integers(0, len(tokenizer) - 1)
    short = st.lists(st.sampled_from(known) | any_token, max_size=12)
    repeated = st.builds(
        lambda run, times: run * times, st.lists(st.sampled_from(known), max_size=5), st.integers(0, 60)
    )
    return [token for part in draw(st.lists(short | repeated, max_size=5)) for token in part]


@pytest.mark.parametrize("family", tiny_tokenizers.ALL)
def test_long_runs_of_bytes_are_shown_as_if_all_were_decoded_at_once(family: str) -> None:
    tokenizer = tiny_tokenizers.ALL[family]()

    @given(ids=runs(family))
    @settings(deadline=None, max_examples=60)
    def check(ids: list[int]) -> None:
        fast, slow, shown = GrowingText(tokenizer), Obvious(tokenizer), [""]
        for token in ids:
            fast.push(token)
            slow.push(token)
            shown.append(fast.text)
        fast.finish()
        slow.finish()
        assert fast.text == slow.text
        assert all(slow.text.startswith(part) for part in shown)

    check()


@pytest.mark.parametrize("family", ["byte_level", "llama2"])
@pytest.mark.parametrize("run", [b"\xe2", b"\xe2\x82", b"\xf0\x9f\x99", b"\xff\xe2\x82\xac"])
def test_a_long_run_of_half_characters_is_shown_as_it_grows_and_in_linear_time(family: str, run: bytes) -> None:
    tokenizer = tiny_tokenizers.ALL[family]()
    ids = tokenizer.get_vocab()
    tokens = [ids[f"<0x{byte:02X}>" if family == "llama2" else SPELLING[byte]] for byte in run]
    text, began = GrowingText(tokenizer), process_time()
    for at in range(4096):
        text.push(tokens[at % len(tokens)])
    assert process_time() - began < 1  # seconds; 2 and more where all that is held back is decoded at every token
    before = len(text.text)
    text.finish()
    assert len(text.text) - before <= 48
    assert text.text == tokenizer.decode([tokens[at % len(tokens)] for at in range(4096)])
