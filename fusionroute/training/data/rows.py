"""Rows of text: from wherever they are, and what stands in them. Knows nothing of tokens."""

import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset

from fusionroute.errors import DataError
from fusionroute.models.prompt import Prompt

Row = Mapping[str, Any]
Source = str | Path | Iterable[Row]
READ_TOGETHER = 1000
FIELDS = "'prompt' and 'completion' (strings or lists of messages), or 'messages' whose last one is the assistant's"
SHAREGPT = {"human": "user", "gpt": "assistant"}  # roles in `conversations`; others keep their names
PROMPT_FIELDS = "'prompt' (a string or a list of messages) or 'messages'"


def read_rows(source: Source) -> Iterator[Row]:
    """The rows of a file, a hub dataset or a live iterable, one at a time. Raises `DataError`."""
    if isinstance(source, (str, Path)):
        return _read_named(source)
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise DataError(f"training data is a file, a hub id or a list of rows; got {type(source).__name__}")
    return iter(source)


def _read_named(source: str | Path) -> Iterator[Row]:
    path = Path(source).expanduser()
    if path.is_file():
        readers = {".jsonl": _read_json_lines, ".json": _read_json_lines, ".parquet": _read_parquet}
        if path.suffix not in readers:
            raise DataError(f"{path} is not of a known kind; give a file that ends in {', '.join(readers)}")
        return readers[path.suffix](path)
    looks_like_path = path.is_absolute() or str(source).startswith((".", "~")) or path.suffix or path.exists()
    if looks_like_path or os.environ.get("HF_HUB_OFFLINE") == "1":
        raise DataError(f"no data file at {source}; give a .jsonl or .parquet file, or a hub id")
    return _read_hub(str(source))


def _read_json_lines(path: Path) -> Iterator[Row]:
    # Not datasets' reader: it wants one type per field over the whole file, even in fields that nobody reads
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}, line {number} is not valid JSON ({error}); write one per line") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(READ_TOGETHER):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as parquet ({error})") from error


def _read_hub(hub_id: str) -> Iterator[Row]:
    try:
        return iter(load_dataset(hub_id, split="train"))
    except Exception as error:  # the hub client has many kinds; each means the same to the user
        raise DataError(f"no file and no reachable hub dataset {hub_id!r} ({type(error).__name__}: {error})") from error


def draw_rows(source: Source, limit: int | None, seed: int | None) -> Iterator[tuple[int, Row]]:
    """Rows with their numbers in the source, from 1: the first ``limit``, or with a ``seed`` as many at random.

    A random draw reads the whole source and keeps ``limit`` rows in memory; they come in the order of the source.
    """
    numbered = enumerate(read_rows(source), start=1)
    if limit is None or seed is None:
        return islice(numbered, limit)
    rng, kept = random.Random(seed), list[tuple[int, Row]]()
    for number, row in numbered:  # reservoir sampling: the source need not say how long it is
        if len(kept) < limit:
            kept.append((number, row))
        elif (place := rng.randrange(number)) < limit:
            kept[place] = (number, row)
    return iter(sorted(kept, key=lambda pair: pair[0]))


def name_of(source: Source) -> str:
    """What messages call a source."""
    return str(source) if isinstance(source, (str, Path)) else "the given data"


def read_example(row: Row) -> tuple[Prompt, str]:
    """Prompt and answer of one row. Raises `DataError` if it has neither of the allowed forms."""
    fields = present(row, FIELDS)
    if {"prompt", "completion"} <= fields.keys():
        return read_text_or_messages(fields["prompt"], "prompt"), read_answer(fields["completion"], "completion")
    if "messages" in fields:
        messages = read_messages(fields["messages"], "messages")
        if len(messages) < 2:
            raise DataError(f"messages holds {len(messages)}; it needs a question and the assistant's answer")
        return messages[:-1], read_answer(messages[-1:], "messages")
    raise unknown_fields(fields, FIELDS)


def read_prompt(row: Row) -> Prompt:
    """The prompt of a row that need not have an answer. Raises `DataError`."""
    fields = present(row, PROMPT_FIELDS)
    if "prompt" in fields:
        return read_text_or_messages(fields["prompt"], "prompt")
    if "messages" in fields:
        messages = read_messages(fields["messages"], "messages")
        return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
    raise unknown_fields(fields, PROMPT_FIELDS)


def present(row: Any, allowed: str) -> Row:
    """The fields that hold something: parquet fills absent ones with None. Raises `DataError` if it is no row."""
    if not isinstance(row, Mapping):
        raise DataError(f"an example is a mapping with {allowed}; got {type(row).__name__}")
    fields = {name: value for name, value in row.items() if value is not None}
    if "conversations" in fields and "messages" not in fields:
        fields["messages"] = _from_sharegpt(fields["conversations"])
    return fields


def _from_sharegpt(turns: Any) -> Any:
    """Turns of ``from`` and ``value`` as chat messages; what has another form is left to be refused."""
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
        return turns
    return [
        {"role": SHAREGPT.get(turn["from"], turn["from"]), "content": turn.get("value")} if "from" in turn else turn
        for turn in turns
    ]


def unknown_fields(fields: Row, allowed: str) -> DataError:
    return DataError(f"it has the fields {', '.join(map(repr, fields)) or '(none)'}; allowed are {allowed}")


def read_text_or_messages(value: Any, field: str) -> str | list[dict[str, str]]:
    """Raises `DataError` if it is neither."""
    return value if isinstance(value, str) else read_messages(value, field, "text or a list of messages")


def read_answer(value: Any, field: str) -> str:
    """Text, or the text of one message of the assistant. Raises `DataError`."""
    messages = read_text_or_messages(value, field)
    if isinstance(messages, str):
        return messages
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(repr(message["role"]) for message in messages)
        raise DataError(f"the answer is one message of the assistant; got {roles or 'no message'} as {field}")
    return messages[0]["content"]


def read_messages(value: Any, field: str, allowed: str = "a list of messages") -> list[dict[str, str]]:
    """Raises `DataError` unless it is a list of messages with a role and a text each."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise DataError(f"{field} must be {allowed}; got {type(value).__name__}")
    for message in value:
        parts = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None,)
        if not all(isinstance(part, str) for part in parts):
            raise DataError(f"{field} must hold messages with 'role' and 'content' as text; got {message!r}")
    return [dict(message) for message in value]
