"""The repair of what a tokenizer does not read faithfully, on one that is made to lose things in every way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionroute.models.vocabulary.segmenter import Segmenter

AB, END = 256, 257
WRITTEN = [*(bytes([byte]) for byte in range(256)), b"ab", None]


class Unfaithful:
    """Bytes and ``ab``; it writes a ligature as two letters, drops a sign, and loses an accent behind an ``a``."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, text: str) -> list[int]:
        self.asked.append(text)
        return faithful(text.replace("ﬁ", "fi").replace("§", "").replace("aé", "a"))


def faithful(text: str) -> list[int]:
    """The bytes, with ``ab`` as one token."""
    ids: list[int] = []
    data = text.encode()
    while data:
        is_pair = data.startswith(b"ab")
        ids.append(AB if is_pair else data[0])
        data = data[2 if is_pair else 1 :]
    return ids


@pytest.fixture
def read() -> Unfaithful:
    return Unfaithful()


@pytest.fixture
def segmenter(read: Unfaithful) -> Segmenter:
    return Segmenter(read, WRITTEN, range(256))


def written(ids: list[int]) -> bytes:
    return b"".join(WRITTEN[id] or b"" for id in ids)


def test_what_is_read_exactly_is_left_as_it_is(segmenter: Segmenter) -> None:
    assert segmenter.encode(b"cab ab") == [ord("c"), AB, ord(" "), AB]


@pytest.mark.parametrize("text", ["abﬁab", "ﬁ", "§", "ab§§ab", "aﬁ§b", "§ab"])
def test_a_character_that_is_never_written_is_written_by_its_bytes(segmenter: Segmenter, text: str) -> None:
    assert segmenter.encode(text.encode()) == faithful(text)


def test_it_is_remembered_and_not_tried_again(segmenter: Segmenter, read: Unfaithful) -> None:
    segmenter.encode("ab§ab".encode())
    read.asked.clear()
    assert segmenter.encode("b§ab§".encode()) == faithful("b§ab§")
    assert read.asked == ["b", "ab"]


def test_a_character_that_is_lost_in_one_place_alone_is_mended_there_alone(
    segmenter: Segmenter, read: Unfaithful
) -> None:
    text = "abcaéabé"
    assert written(segmenter.encode(text.encode())) == text.encode()
    assert segmenter.encode(text.encode()).count(AB) == 2
    read.asked.clear()
    segmenter.encode("éab".encode())
    assert read.asked == ["éab"]  # it can be written, so nothing is cut around it


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(text=st.text(alphabet="ab cﬁ§é", max_size=12))
def test_whatever_is_lost_the_bytes_are_exact(text: str) -> None:
    segmenter = Segmenter(Unfaithful(), WRITTEN, range(256))
    assert written(segmenter.encode(text.encode())) == text.encode()
