"""Rows of text: files of one JSON object a line or of parquet, and the messages that stand in them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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


def _read_json_lines(path: Path) -> Iterator[Any]:
    # Not datasets' reader: it wants one type per field over the whole file, even in fields that nobody reads
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parsed(line, path, number)


def _parsed(line: bytes, path: Path, number: int) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number} is not UTF-8; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number} is not valid JSON ({error}); write one object per line") from error


def _read_parquet(path: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(READ_TOGETHER):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as parquet ({error})") from error


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
