"""Text that grows token by token. Knows nothing about models."""

from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoding half a UTF-8 character gives


class GrowingText:
    """Decodes as tokens arrive and never shows half a character, nor anything from a stop string on.

    Only the last few tokens are decoded at each push: a token's text can depend on those just before it (spaces,
    bytes of one character), not on the whole answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()):
        self.tokenizer = tokenizer
        self.stop = stop
        self.ids: list[int] = []
        self.text = ""
        self.is_stopped = False
        self._context = 0  # decoding starts at this token …
        self._shown = 0  # … and everything before this one is in `text`

    def push(self, token_id: int) -> None:
        """Add one token; sets `is_stopped` when a stop string is complete, and cuts the text there."""
        self.ids.append(token_id)
        known = self._decode(self.ids[self._context : self._shown])
        grown = self._decode(self.ids[self._context :])
        if not grown.endswith(INCOMPLETE):
            self._add(grown[len(known) :])
            self._context, self._shown = self._shown, len(self.ids)

    def finish(self) -> None:
        """Show what was held back; no more tokens will come."""
        known = self._decode(self.ids[self._context : self._shown])
        self._add(self._decode(self.ids[self._context :])[len(known) :])
        self._context = self._shown = len(self.ids)

    @property
    def settled(self) -> int:
        """Length of the text that cannot be taken back: a tail that begins a stop string still may."""
        if self.is_stopped:
            return len(self.text)
        longest = max((len(stop) for stop in self.stop), default=1) - 1
        for size in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self.stop):
                return len(self.text) - size
        return len(self.text)

    def _add(self, piece: str) -> None:
        if self.is_stopped:
            return
        longest = max((len(stop) for stop in self.stop), default=0)
        start = max(0, len(self.text) - longest + 1)
        self.text += piece
        found = [at for stop in self.stop if (at := self.text.find(stop, start)) >= 0]
        if found:
            self.text, self.is_stopped = self.text[: min(found)], True

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
