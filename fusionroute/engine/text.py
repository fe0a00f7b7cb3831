"""Text that grows token by token. Knows nothing about models."""

from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoding half a UTF-8 character gives
BEGUN = 3  # bytes that can begin a character, each of which some tokenizers decode to an INCOMPLETE of its own
HELD = 48  # tokens held back; of more than these the first and the last are kept
FIRST, LAST = 12, 24  # so many


class GrowingText:
    """Decodes as tokens arrive and never shows half a character, nor anything from a stop string on.

    Only the last few tokens are decoded at each push: a token's text can depend on those just before it (spaces,
    bytes of one character), not on the whole answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()):
        self.tokenizer = tokenizer
        self.stop = stop
        self.text = ""
        self.is_stopped = False
        self._context: list[int] = []  # tokens that are shown: decoding starts at them …
        self._held: list[int] = []  # … and goes on with these
        self._known = 0  # length of what is shown of their text
        self._begun = [0] * len(stop)  # of each stop string, how much of it the text ends with

    def push(self, token_id: int) -> None:
        """Add one token; sets `is_stopped` when a stop string is complete, and cuts the text there."""
        self._held.append(token_id)
        grown = self._decode(self._context + self._held)
        if not grown.endswith(INCOMPLETE):
            self._add(grown[self._known :])
            self._context, self._held = self._held, []
            self._known = len(self._decode(self._context))
        elif len(self._held) >= HELD:
            self._shorten(grown)

    def finish(self) -> None:
        """Show what was held back; no more tokens will come."""
        self._add(self._decode(self._context + self._held)[self._known :])
        self._context, self._held, self._known = [], [], 0

    @property
    def settled(self) -> int:
        """Length of the text that cannot be taken back: a tail that begins a stop string still may."""
        return len(self.text) if self.is_stopped else len(self.text) - max(self._begun, default=0)

    def _shorten(self, grown: str) -> None:
        """Show of a long run of broken characters what no byte can mend, and decode it no more.

        The first of the run stay, since some tokenizers show a whole run of bytes as broken if any of them is; the
        last stay, since a character may have begun. Between them any byte finds its character again within three.
        """
        first, last = self._held[:FIRST], self._held[-LAST:]
        if len(self._decode(first)) <= BEGUN or len(self._decode(last)) < 2 * BEGUN:
            return  # too few bytes for either: tokens without text are among them
        kept = self._decode(first + last)
        begun = min(BEGUN, len(grown) - len(grown.rstrip(INCOMPLETE)))
        end = max(self._known, len(grown) - begun)
        if kept.endswith(grown[end:]):
            self._add(grown[self._known : end])
            self._context, self._held = [], first + last
            self._known = len(kept) - (len(grown) - end)

    def _add(self, piece: str) -> None:
        if self.is_stopped:
            return
        longest = max((len(stop) for stop in self.stop), default=0)
        start = max(0, len(self.text) - longest + 1)
        self.text += piece
        found = [at for stop in self.stop if (at := self.text.find(stop, start)) >= 0]
        if found:
            self.text, self.is_stopped = self.text[: min(found)], True
        else:
            self._begun = [_grow(begun, stop, piece) for begun, stop in zip(self._begun, self.stop, strict=True)]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _grow(begun: int, stop: str, piece: str) -> int:
    """How much of the beginning of ``stop`` a text ends with that ended with ``begun`` of it before ``piece``.

    The automaton of Knuth, Morris and Pratt: what grows longest again, after a character that does not continue it,
    is its own longest end that also begins the stop string. `piece` completes no stop string.
    """
    shorter = borders(stop)
    for character in piece:
        while begun and stop[begun] != character:
            begun = shorter[begun - 1]
        begun += stop[begun] == character
    return begun


@lru_cache(maxsize=256)
def borders(string: str) -> Sequence[int]:
    """Of each beginning of ``string``, the length of its longest proper end that is also its beginning."""
    found, size = [0], 0
    for character in string[1:]:
        while size and string[size] != character:
            size = found[size - 1]
        size += string[size] == character
        found.append(size)
    return found
