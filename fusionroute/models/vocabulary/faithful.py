"""Does a tokenizer read ordinary text as it is written, and do we read it as the tokenizer itself does?"""

import unicodedata
from collections.abc import Callable, Iterable

from transformers import PreTrainedTokenizerBase

from fusionroute.errors import VocabularyError

# Composed, without compatibility characters: what Unicode normalisation leaves alone.
ORDINARY = {
    "English": "The quick brown Fox didn't jump, it's 7 o'clock!",
    "code": "def f(x):\n    return x[0] + {'a': 1}  # two\n\n\tend",
    "numbers": "1234567890 + 3.14 = 1e-5",
    "double spaces": "one  two   three",
    "accents": "café, naïve, Übergröße, señor",
    "Chinese": "你好世界。再见",
    "Russian": "Привет, мир",
    "Arabic": "مرحبا بالعالم",
    "emoji": "fine 🙂👍",
}
PREFIXES = ("see: ", "x\n", "a\n\n", "It is 1. ")  # what the text may follow; with some of them it may merge


def check_faithful(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    read: Callable[[str], list[int]],
    text_of: Callable[[Iterable[int]], bytes],
) -> None:
    """Insist that ``read`` gives back every ordinary text, in the ids that the tokenizer itself gives inside a text.

    Raises:
        VocabularyError: naming what the tokenizer does to the text.
    """
    for kind, text in ORDINARY.items():
        written = text_of(read(text)).decode(errors="replace")
        if written != text:
            raise _changes(name, kind, text, written)
        native = [_native(prefix + text, tokenizer) for prefix in PREFIXES]
        if not any(
            _agree(ids, read(prefix + text), len(prefix.encode()), text_of)
            for prefix, ids in zip(PREFIXES, native, strict=True)
        ):
            _, mark, written = text_of(native[0]).decode(errors="replace").partition(PREFIXES[0])
            if mark and written != text:
                raise _changes(name, kind, text, written)
            raise VocabularyError(
                f"the tokenizer of {name!r} reads {text!r} ({kind}) in other tokens when it stands inside a text than "
                "exact reading gives; its rules are not known here: use models with other tokenizers"
            )


def change(text: str, written: str) -> str:
    """In words, what happened to a text."""
    if written == text.lower():
        return "makes capital letters small"
    if written in (_without_accents(text), _without_accents(text.lower())):
        return "drops accents"
    if written.split() == text.split() or written.replace(" ", "") == "".join(text.split()):
        return "drops or merges spaces and line breaks"
    if unicodedata.normalize("NFKC", written) == unicodedata.normalize("NFKC", text):
        return "normalises characters"
    if len(written) < len(text):
        return "has no tokens for some characters, nor byte tokens in their place"
    return "changes text"


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def _changes(name: str, kind: str, text: str, written: str) -> VocabularyError:
    return VocabularyError(
        f"the tokenizer of {name!r} {change(text, written)}: it reads {text!r} ({kind}) as {written!r}; models with "
        "different tokenizers share the text of an answer, so all of them must keep it as it is"
    )


def _native(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _agree(native: list[int], ours: list[int], prefix: int, text_of: Callable[[Iterable[int]], bytes]) -> bool:
    """Whether both end in the same tokens, from inside the prefix on; before it stand marks of a text's beginning."""
    same = 0
    while same < min(len(native), len(ours)) and native[-1 - same] == ours[-1 - same]:
        same += 1
    return len(text_of(ours[: len(ours) - same])) <= prefix
