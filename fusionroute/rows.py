"""Rows of text: files of one JSON object a line or of parquet, and the messages that stand in them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionroute.errors import DataError

Row = Mapping[str, Any]
Source = str | Path | Iterable[Row]
READ_TOGETHER = 1000


def read_file(path: Path) -> Iterator[Any]:
    """The rows of a ``.jsonl``, ``.json`` or ``.parquet`` file, one at a time, each as it stands there.

    Raises `DataError` for a file of another kind, and while it is read for one that is not what its name says.
    """
    readers = {".jsonl": _read_json_lines, ".json": _read_json_lines, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise DataError(f"{path} is not of a known kind; give a file that ends in {', '.join(readers)}")
    return readers[path.suffix](path)


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that hold something, each behind its place, ``file:3``, which messages begin with.

    A line ends where `\\n` stands, not at what JSON and prose may hold, such as U+2028. Raises `DataError` for one
    that is not UTF-8.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{path}:{number}"
                yield place, _decoded(line, place).rstrip("\r\n")


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(place, error) from None


def not_utf8(place: str, error: UnicodeDecodeError) -> DataError:
    """What to say of it."""
    byte = error.object[error.start]
    return DataError(f"{place} holds the byte 0x{byte:02x}, which is not UTF-8 there; save it as UTF-8")


def parse_json(text: str, place: str, form: str = "one object a line") -> Any:
    """Raises `DataError`, which names the place and the ``form`` that is expected there."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not valid JSON ({error}); write {form}") from None


def _read_json_lines(path: Path) -> Iterator[Any]:
    # Not datasets' reader: it wants one type per field over the whole file, even in fields that nobody reads
    return (parse_json(line, place) for place, line in numbered_lines(path))


def _read_parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(READ_TOGETHER):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as parquet ({error}); write it again") from error


def name_of(source: Source) -> str:
    """What messages call a source."""
    return str(source) if isinstance(source, (str, Path)) else "the given data"


def read_messages(value: Any, field: str, allowed: str = "a list of messages") -> list[dict[str, str]]:
    """Raises `DataError` unless it is a list of messages with a role and a text each."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise DataError(f"{field} must be {allowed}; got {type(value).__name__}")
    for message in value:
        parts = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None,)
        if not all(isinstance(part, str) for part in parts):
            raise DataError(f"{field} must hold messages with 'role' and 'content' as text; got {message!r}")
    return [dict(message) for message in value]
