"""NLTK's sentence splitter, which IFEval fetches when it is imported and needs for two of its instructions."""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fusionroute.errors import DataError

RESOURCE = "punkt_tab"
# Instructions whose checks split sentences or words by it, as IFEval numbers them.
NEEDED_BY = ("length_constraints:number_sentences", "change_case:capital_word_frequency")


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Within the block NLTK downloads nothing and says nothing of it; `check_splitter` does, once it is needed.

    Languages are guessed with a fixed seed from here on: langdetect draws, and the same answer must score the same.
    """
    import langdetect  # type: ignore[import-not-found, import-untyped, unused-ignore]
    import nltk  # type: ignore[import-not-found, import-untyped, unused-ignore]

    langdetect.DetectorFactory.seed = 0
    original = nltk.download
    nltk.download = lambda *_, **__: False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        nltk.download = original


def check_splitter(task: str, questions: Iterable[Mapping[str, Any]], can_fetch: Callable[[], bool]) -> None:
    """Fetch the splitter if one of the questions needs it.

    Raises:
        DataError: it is needed, is not on this machine and cannot be fetched.
    """
    used = [name for row in questions for name in row.get("instruction_id_list") or () if name in NEEDED_BY]
    if not used or _is_there():
        return
    if can_fetch():
        import nltk

        nltk.download(RESOURCE, quiet=True)
    if not _is_there():
        raise DataError(
            f"task {task!r} splits sentences or words for {len(used)} of its instructions (such as {used[0]}), and "
            f"NLTK's data for that is not on this machine: run `python -m nltk.downloader {RESOURCE}` with network"
        )


def _is_there() -> bool:
    import nltk

    try:
        nltk.data.find(f"tokenizers/{RESOURCE}")
    except LookupError:
        return False
    return True
