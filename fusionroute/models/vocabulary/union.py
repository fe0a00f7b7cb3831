"""One numbering for the tokens of several tokenizers, by what they write."""

import hashlib
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from fusionroute.models.vocabulary.cached import read_cached, write_cached
from fusionroute.models.vocabulary.pieces import Pieces

FORMAT = "2"  # of the file on disk


class UnionVocabulary:
    """The symbols of several members, drafter first.

    Symbols 0 to n - 1 are the byte strings, valid UTF-8 and not empty, that some member has as a token, sorted by
    bytes. Then comes `end`, to which whatever ends an answer maps. Then come the drafter's own symbols: pieces that
    are no complete characters, which a verifier has too if it has the very same bytes as one token, and special tokens
    that end nothing. What else verifiers have of these kinds is dropped.

    Attributes:
        size: number of symbols.
        end: the symbol of all ends.
        strings: by symbol.
        maps: for each member, ``[vocabulary]`` int64, token id to symbol; ``size``, one beyond, is dropped. So
            ``zeros(size + 1).index_add_(0, maps[v], p)[:size]`` is what member v says of each symbol.
        prefix_end: ``[size]`` int64; the strings that start with string s are s and s + 1 to ``prefix_end[s]`` - 1.
        is_drafters: ``[size]`` bool; whether the drafter has it as one token.
        fingerprint: of all members, in order.
    """

    size: int
    end: int
    strings: Sequence[bytes]
    fingerprint: str
    maps: tuple[Tensor, ...]
    prefix_end: Tensor
    is_drafters: Tensor

    def __init__(self, members: Sequence[Pieces]):
        self.members = tuple(members)
        self.drafter = self.members[0]
        self.fingerprint = _fingerprint(self.members)
        kept = read_cached("union", self.fingerprint)
        if kept is None or not self._load(kept):
            made = _align(self.members)
            write_cached("union", self.fingerprint, made)
            self._load(made)

    def bytes_of(self, symbol: int) -> bytes:
        """What a symbol writes; nothing for the end and for special tokens."""
        if symbol < self.end:
            return self.strings[symbol]
        return b"" if symbol == self.end else self.drafter.bytes_of[self._own[symbol - self.end - 1]] or b""

    def drafter_ids(self, symbol: int, *, whole: bool = True) -> list[int]:
        """The drafter's tokens for a symbol.

        Args:
            whole: all of a string; else as UniTE does, the first of them, with a lone space before it, and only as many
                more as complete its last character.
        """
        if symbol == self.end:
            return [self.drafter.end_id]
        if symbol > self.end:
            return [self._own[symbol - self.end - 1]]
        id = self.drafter.id_of(self.strings[symbol])
        if id is not None:
            return [id]
        ids = self.drafter.encode(self.strings[symbol])
        return ids if whole else self._first_complete(ids)

    def symbol_of_id(self, member: int, id: int) -> int:
        """The symbol of one member's token; ``size`` if it is dropped."""
        return int(self.maps[member][id])

    def _first_complete(self, ids: list[int]) -> list[int]:
        """As few as are whole characters, and more than a lone space."""
        written = [self.drafter.text(ids[:count]) for count in range(1, len(ids))]
        count = next((at for at, text in enumerate(written, 1) if text != b" " and is_complete(text)), len(ids))
        return ids[:count]

    def _load(self, kept: dict[str, Tensor]) -> bool:
        """Take over what `_align` made; False if it is not whole."""
        names = [f"map_{at}" for at in range(len(self.members))]
        if kept.keys() != {"text", "ends", "own", "prefix_end", "is_drafters", *names}:
            return False
        text, ends = kept["text"].numpy().tobytes(), kept["ends"].tolist()
        self.strings = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        self._own: list[int] = kept["own"].tolist()
        self.end = len(self.strings)
        self.size = self.end + 1 + len(self._own)
        self.maps = tuple(kept[name] for name in names)
        self.prefix_end, self.is_drafters = kept["prefix_end"], kept["is_drafters"]
        sizes = [member.vocabulary_size for member in self.members]
        return len(self.prefix_end) == self.size and [len(ids) for ids in self.maps] == sizes


def is_complete(piece: bytes) -> bool:
    """Whether these bytes are whole characters."""
    if piece.isascii():
        return True
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _align(members: Sequence[Pieces]) -> dict[str, Tensor]:
    pieces = {piece for member in members for piece in member.bytes_of if piece is not None}
    strings = sorted(filter(is_complete, pieces))
    symbols: dict[bytes | None, int] = {string: symbol for symbol, string in enumerate(strings)}
    end, drafter = len(strings), members[0]
    own_pieces = sorted({piece for piece in drafter.bytes_of if piece is not None and piece not in symbols})
    own_special = sorted(drafter.control_ids)
    size = end + 1 + len(own_pieces) + len(own_special)
    for_drafter = symbols | {piece: end + 1 + at for at, piece in enumerate(own_pieces)}
    special = {id: end + 1 + len(own_pieces) + at for at, id in enumerate(own_special)}
    maps = [_map(drafter, for_drafter, special, end, size)]
    maps += [_map(member, for_drafter, {}, end, size) for member in members[1:]]
    is_drafters = torch.zeros(size + 1, dtype=torch.bool)
    is_drafters[maps[0]] = True
    return {
        "text": torch.from_numpy(np.frombuffer(b"".join(strings), dtype=np.uint8).copy()),
        "ends": torch.tensor(list(accumulate(map(len, strings))), dtype=torch.int64),
        "own": torch.tensor([*map(drafter.id_of, own_pieces), *own_special], dtype=torch.int64),
        "prefix_end": torch.tensor([*_prefix_ends(strings), *range(end + 1, size + 1)], dtype=torch.int64),
        "is_drafters": is_drafters[:size].clone(),
        **{f"map_{at}": symbols_of for at, symbols_of in enumerate(maps)},
    }


def _map(member: Pieces, symbols: dict[bytes | None, int], special: dict[int, int], end: int, size: int) -> Tensor:
    found = [symbols.get(piece, size) for piece in member.bytes_of]
    for id, symbol in (special | dict.fromkeys(member.end_ids, end)).items():
        found[id] = symbol
    return torch.tensor(found, dtype=torch.int64)


def _prefix_ends(strings: Sequence[bytes]) -> list[int]:
    """For each of sorted strings, the first one behind it that does not start with it."""
    ends, open_ = [len(strings)] * len(strings), list[int]()
    for at, string in enumerate(strings):
        while open_ and not string.startswith(strings[open_[-1]]):
            ends[open_.pop()] = at
        open_.append(at)
    return ends


def _fingerprint(members: Sequence[Pieces]) -> str:
    return hashlib.sha256("/".join([FORMAT, *(member.fingerprint for member in members)]).encode()).hexdigest()
