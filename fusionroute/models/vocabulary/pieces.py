"""One tokenizer in bytes: what each of its tokens writes, and how any bytes read in its tokens."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate

import numpy as np
from transformers import PreTrainedTokenizerBase

from fusionroute.errors import VocabularyError
from fusionroute.models.vocabulary.backend import Settings, as_continuation, settings_of
from fusionroute.models.vocabulary.ends import control_tokens, end_ids
from fusionroute.models.vocabulary.faithful import check_faithful
from fusionroute.models.vocabulary.segmenter import Segmenter, reader_behind_anchor, reader_of_backend
from fusionroute.models.vocabulary.writing import Writer, marks_in, spellings, writer_by_spelling, writer_of

FORMAT = "1"  # of what is kept on disk; another number once pieces mean something else


class Pieces:
    """What the tokens of one tokenizer write, and the exact way from bytes to its tokens.

    Args:
        tokenizer: of a causal LM: byte-level, or in the manner of SentencePiece with byte tokens.
        name: the model's, for errors.
        vocabulary_size: of the model, whose rows may be more than the tokenizer has tokens.
        eos_ids: what ends an answer according to the model.

    Attributes:
        bytes_of: what each token writes, by id; None for a special token, an end, or a row without a token.
        end_ids: whatever ends an answer; ``end_id`` is the one to write where another member ends it.
        control_ids: special tokens that end nothing.
        fingerprint: of all that decides how text is read and what tokens write; not of the name.

    Raises:
        VocabularyError: the tokenizer changes text, lacks byte tokens, or nothing ends an answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "model",
        vocabulary_size: int | None = None,
        eos_ids: Collection[int] = (),
    ):
        self.name, self.tokenizer = name, tokenizer
        settings = settings_of(tokenizer) if tokenizer.is_fast else None
        controls = control_tokens(tokenizer)
        tokens = spellings(tokenizer, settings)
        self.vocabulary_size = self._size([id for id in tokens if id not in controls], vocabulary_size)
        controls = {id: spelling for id, spelling in controls.items() if id < self.vocabulary_size}
        tokens = {id: token for id, token in tokens.items() if id < self.vocabulary_size}
        self.end_ids, self.end_id = self._ends(frozenset(eos_ids))
        self.control_ids = frozenset(controls) - self.end_ids
        self.bytes_of = self._written(tokens, settings, controls.keys() | self.end_ids)
        self._bytes = [piece or b"" for piece in self.bytes_of]
        self._lengths = [len(piece) for piece in self._bytes]
        continuation = None if settings is None else as_continuation(settings, controls)
        read = reader_behind_anchor(tokenizer) if continuation is None else reader_of_backend(continuation)
        self._segmenter = Segmenter(read, self.bytes_of, self._byte_ids(), marks_in(settings))
        check_faithful(name, tokenizer, self._segmenter.as_it_reads, self.text)
        self._ids = self._canonical_ids()
        self.fingerprint = self._fingerprint(continuation)

    def is_special(self, id: int) -> bool:
        """Whether a token writes nothing: one that controls the model, ends an answer, or has no spelling at all."""
        return self.bytes_of[id] is None

    def text(self, ids: Iterable[int]) -> bytes:
        """What these tokens write one after another; special tokens write nothing."""
        pieces = self._bytes
        return b"".join([pieces[id] for id in ids])

    def encode(self, text: bytes) -> list[int]:
        """The tokens that the model would read for ``text`` inside an answer; they write exactly these bytes."""
        return self._segmenter.encode(text)

    def starts(self, ids: Sequence[int]) -> list[int]:
        """The byte offset in their text at which each of these tokens starts."""
        lengths = self._lengths
        return list(accumulate([lengths[id] for id in ids], initial=0))[:-1]

    def id_of(self, piece: bytes) -> int | None:
        """The one token that writes exactly ``piece``, if there is one; of several the one that reading it gives."""
        return self._ids.get(piece)

    def first_id(self, piece: bytes) -> int:
        """`id_of`, else the first of several tokens that write ``piece`` together, which must not be empty."""
        id = self.id_of(piece)
        return self.encode(piece)[0] if id is None else id

    def _size(self, written: Collection[int], vocabulary_size: int | None) -> int:
        """The model's rows; special tokens may lie beyond them, such as those of a sibling that sees images."""
        needed = 1 + max(written, default=-1)
        if vocabulary_size is not None and vocabulary_size < needed:
            raise VocabularyError(
                f"the tokenizer of {self.name!r} has ids up to {needed - 1} but the model only {vocabulary_size} "
                "tokens; use the model's own tokenizer"
            )
        return vocabulary_size or max([needed - 1, *self.tokenizer.added_tokens_decoder]) + 1

    def _ends(self, model_eos_ids: frozenset[int]) -> tuple[frozenset[int], int]:
        ends = frozenset(id for id in end_ids(self.tokenizer, model_eos_ids) if 0 <= id < self.vocabulary_size)
        own = self.tokenizer.eos_token_id
        known = model_eos_ids & ends
        if not ends:
            raise VocabularyError(
                f"{self.name!r} has no end-of-sequence token, neither in its generation config nor in its tokenizer, "
                "so its answers could not end; set eos_token_id in generation_config.json"
            )
        return ends, own if own in ends and (own in known or not known) else min(known or ends)

    def _written(
        self, tokens: dict[int, object], settings: Settings | None, silent: Collection[int]
    ) -> list[bytes | None]:
        writer = writer_by_spelling(tokens.values()) if settings is None else writer_of(settings)
        if writer is None:
            raise VocabularyError(
                f"the tokenizer of {self.name!r} is {_kind(self.tokenizer, settings)} without byte tokens, so most "
                "texts of other models could not be read in its tokens; models with different tokenizers need "
                "byte-level ones, or ones with byte fallback"
            )
        written: list[bytes | None] = [None] * self.vocabulary_size
        for id, token in tokens.items():
            written[id] = token if isinstance(token, bytes) else writer(str(token))
        for id, added in self.tokenizer.added_tokens_decoder.items():
            if id < self.vocabulary_size:
                written[id] = _added(added.content, writer)
        for id in silent:
            written[id] = None
        return [piece or None for piece in written]

    def _byte_ids(self) -> list[int]:
        single = {piece: id for id, piece in reversed(list(enumerate(self.bytes_of))) if piece and len(piece) == 1}
        missing = [byte for byte in range(256) if bytes([byte]) not in single]
        if missing:
            raise VocabularyError(
                f"the tokenizer of {self.name!r} has no token for {len(missing)} of the 256 bytes, the first is "
                f"0x{missing[0]:02X} (special and end tokens do not count); models with different tokenizers need one "
                "for each, as byte-level tokenizers and those with byte fallback have"
            )
        return [single[bytes([byte])] for byte in range(256)]

    def _canonical_ids(self) -> dict[bytes, int]:
        ids: dict[bytes, int] = {}
        several: set[bytes] = set()
        for id, piece in enumerate(self.bytes_of):
            if piece is not None and ids.setdefault(piece, id) != id:
                several.add(piece)
        for piece in several:
            read = self.encode(piece)
            if len(read) == 1:
                ids[piece] = read[0]
        return ids

    def _fingerprint(self, continuation: Settings | None) -> str:
        digest = hashlib.sha256(FORMAT.encode())
        for values in (self._lengths, sorted(self.end_ids), sorted(self.control_ids), [self.end_id]):
            digest.update(np.asarray(values, dtype=np.int64).tobytes() + b"|")
        digest.update(b"".join(self._bytes))
        digest.update(repr(continuation or type(self.tokenizer)).encode())
        return digest.hexdigest()


def _added(content: str, writer: Writer) -> bytes:
    return writer(content) if not content.isascii() and "▁" in content else content.encode()


def _kind(tokenizer: PreTrainedTokenizerBase, settings: Settings | None) -> str:
    return type(tokenizer).__name__ if settings is None else f"a {settings['model']['type']} model"
