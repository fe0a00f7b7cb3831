"""From a tokenizer to an exact encoder of continuations: whatever the bytes, its tokens write just these bytes."""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from fusionroute.models.vocabulary.backend import Settings, rebuild

Read = Callable[[str], list[int]]
ANCHORS = ("\n", "a", ".", "0", "\na", "a\n")
STRAY = re.compile(r"([\udc80-\udcff]+)")  # how Python writes the bytes of no character
BYTE_SPELLINGS = [f"<0x{byte:02X}>" for byte in range(256)]


class Segmenter:
    """Encodes any bytes as a continuation.

    Args:
        read: token ids of a text in the middle of another; need not be exact.
        written: what each token writes, by id; None for one that must not stand in a text.
        byte_ids: the token that writes each single byte.
        marks: characters that tokens use for others, so that reading them gives something else.
    """

    def __init__(
        self, read: Read, written: Sequence[bytes | None], byte_ids: Sequence[int], marks: Collection[str] = ()
    ):
        self._read = read
        self._bytes = [piece or b"" for piece in written]
        self._silent = frozenset(id for id, piece in enumerate(written) if not piece)
        self._byte_ids = list(byte_ids)
        self._unwritable = {mark for mark in marks if len(mark) == 1}  # characters that only byte tokens write
        self._swallowed = [spelling for spelling in BYTE_SPELLINGS if not self._is_exact(spelling, read(spelling))]
        self._cut = self._where_to_cut()

    def encode(self, text: bytes) -> list[int]:
        """Ids of tokens that write ``text`` and nothing else, also where it is no valid UTF-8."""
        try:
            return self._encode_characters(text.decode())
        except UnicodeDecodeError:
            runs = STRAY.split(text.decode(errors="surrogateescape"))
        ids: list[int] = []
        for at, run in enumerate(runs):
            is_stray = at % 2 == 1
            ids += self._by_bytes(run.encode(errors="surrogateescape")) if is_stray else self._encode_characters(run)
        return ids

    def as_it_reads(self, text: str) -> list[int]:
        """Ids without any repair, for whoever asks how faithful the tokenizer is."""
        return self._read(text)

    def _encode_characters(self, text: str) -> list[int]:
        if not text:
            return []
        if self._cut is None or not self._cut.search(text):
            return self._encode_run(text)
        ids: list[int] = []
        for run in filter(None, self._cut.split(text)):
            ids += self._by_bytes(run.encode()) if run[0] in self._unwritable else self._encode_run(run)
        return ids

    def _encode_run(self, run: str) -> list[int]:
        ids: list[int] = []
        while run:
            found = self._read(run)
            if self._is_exact(run, found):
                return ids + found
            kept, at = self._exact_part(run, found)
            lost = run[at]
            if not self._is_exact(lost, self._read(lost)):  # never writable: such characters are cut out beforehand
                self._unwritable.add(lost)
                self._cut = self._where_to_cut()
                return ids + self._encode_characters(run)
            ids += found[:kept] + self._by_bytes(lost.encode())
            run = run[at + 1 :]
        return ids

    def _is_exact(self, text: str, ids: list[int]) -> bool:
        pieces = self._bytes
        return b"".join([pieces[id] for id in ids]) == text.encode() and self._silent.isdisjoint(ids)

    def _exact_part(self, text: str, ids: list[int]) -> tuple[int, int]:
        """How many leading tokens, and characters, agree; both end where a character does."""
        target, at, best = text.encode(), 0, (0, 0)
        ends, total = {0: 0}, 0
        for count, character in enumerate(text, 1):
            total += len(character.encode())
            ends[total] = count
        for count, id in enumerate(ids, 1):
            piece = self._bytes[id]
            if not piece or not target.startswith(piece, at):
                break
            at += len(piece)
            if at in ends and ends[at] < len(text):
                best = (count, ends[at])
        return best

    def _by_bytes(self, text: bytes) -> list[int]:
        return [self._byte_ids[byte] for byte in text]

    def _where_to_cut(self) -> re.Pattern[str] | None:
        """Around characters that cannot be written, and inside spellings that would be taken for one token."""
        patterns = []
        if self._unwritable:
            patterns.append("([" + "".join(re.escape(character) for character in sorted(self._unwritable)) + "]+)")
        if self._swallowed:
            patterns.append("(?<=<)(?=" + "|".join(spelling[1:] for spelling in self._swallowed) + ")")
        return re.compile("|".join(patterns)) if patterns else None


def reader_of_backend(continuation: Settings) -> Read:
    """Of a fast tokenizer, given its settings for continuations."""
    backend: Any = rebuild(continuation)
    return lambda text: backend.encode(text, add_special_tokens=False).ids


def reader_behind_anchor(tokenizer: PreTrainedTokenizerBase, *, controls: bool = False) -> Read:
    """Of any tokenizer: encode something known and the text, and take what follows what is known.

    Args:
        controls: find control tokens in the text, instead of reading their spellings as text.
    """

    def encode(text: str) -> list[int]:
        split = not controls
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=split, verbose=False).input_ids)

    anchors = [(anchor, encode(anchor)) for anchor in ANCHORS]

    def read(text: str) -> list[int]:
        for anchor, known in anchors:
            ids = encode(anchor + text)
            if ids[: len(known)] == known:
                return ids[len(known) :]
        return ids  # merged with every anchor: what it writes is wrong, and whoever asked will see it

    return read
