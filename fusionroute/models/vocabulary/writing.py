"""What each token writes, in bytes, from how a tokenizer spells its tokens. Knows nothing of how text is read."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from fusionroute.models.vocabulary.backend import Settings, parts

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE_MARK = "▁"
Writer = Callable[[str], bytes]


def _byte_alphabet() -> dict[str, int]:
    """The character by which byte-level tokenizers spell each byte: itself if printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


def byte_level(token: str) -> bytes:
    """What a token of a byte-level tokenizer writes: a byte a character, or its spelling if some character is none."""
    try:
        return bytes([BYTE_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def with_byte_tokens(replaced: Mapping[str, str]) -> Writer:
    """Of a tokenizer in the manner of SentencePiece: ``<0xE2>`` writes that byte, and marks stand for spaces."""

    def write(token: str) -> bytes:
        if found := BYTE_TOKEN.fullmatch(token):
            return bytes([int(found[1], 16)])
        for mark, text in replaced.items():
            token = token.replace(mark, text)
        return token.encode()

    return write


def writer_of(settings: Settings) -> Writer | None:
    """How a fast tokenizer's tokens are spelled; None if no way of writing bytes is known of it."""
    steps = [step for part in ("normalizer", "pre_tokenizer", "decoder") for step in parts(settings[part])]
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return byte_level
    if "ByteFallback" in kinds or settings["model"].get("byte_fallback"):
        return with_byte_tokens(_marks(parts(settings["decoder"])))
    return None


def writer_by_spelling(tokens: Iterable[Any]) -> Writer | None:
    """The same for a tokenizer that says nothing of itself, from the tokens that it has."""
    tokens = set(tokens)
    if all(isinstance(token, bytes) for token in tokens):
        return byte_level  # in the manner of tiktoken: tokens are what they write; other ones are added and spelled
    if all(f"<0x{byte:02X}>" in tokens for byte in range(256)):
        return with_byte_tokens({SPACE_MARK: " "})
    return byte_level if tokens >= BYTE_ALPHABET.keys() else None


def spellings(tokenizer: PreTrainedTokenizerBase, settings: Settings | None) -> dict[int, Any]:
    """Every token of the model itself by id, without added ones."""
    if settings is None:
        ids = sorted(tokenizer.get_vocab().values())
        tokens: Any = tokenizer.convert_ids_to_tokens(ids)
        return dict(zip(ids, tokens, strict=True))
    vocabulary = settings["model"]["vocab"]
    if isinstance(vocabulary, list):
        return {id: piece for id, (piece, _) in enumerate(vocabulary)}
    return {id: token for token, id in vocabulary.items()}


def marks_in(settings: Settings | None) -> dict[str, str]:
    """The characters that stand for others inside tokens, so that they cannot stand for themselves."""
    return {SPACE_MARK: " "} if settings is None else _marks(parts(settings["decoder"]))


def _marks(decoder: Iterable[Settings]) -> dict[str, str]:
    marks = {}
    for step in decoder:
        if step["type"] == "Replace" and "String" in step["pattern"]:
            marks[step["pattern"]["String"]] = step["content"]
        elif step["type"] == "Metaspace":
            marks[step["replacement"]] = " "
    return marks
