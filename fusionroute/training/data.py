"""Training examples, from wherever they are, as token ids with the answer's place. Knows nothing of experts."""

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset

from fusionroute.errors import DataError, PromptError
from fusionroute.models.prompt import Prompt, PromptFormat

Row = Mapping[str, Any]
Source = str | Path | Iterable[Row]
FIELDS = "'prompt' and 'completion' (strings or lists of messages), or 'messages' whose last one is the assistant's"
READ_TOGETHER = 1000


@dataclass(frozen=True)
class DataReport:
    """What became of the rows that were read. ``str()`` of it is one line for people."""

    kept: int
    cut: int
    too_long: int
    empty: int
    answer_tokens: int
    max_length: int

    @property
    def dropped(self) -> int:
        return self.too_long + self.empty

    def __str__(self) -> str:
        parts = [f"{self.kept:,} examples with {self.answer_tokens:,} tokens to learn"]
        if self.cut:
            parts.append(f"{self.cut:,} answers cut at {self.max_length:,} tokens")
        if self.too_long:
            parts.append(f"{self.too_long:,} dropped because the prompt alone fills {self.max_length:,} tokens")
        if self.empty:
            parts.append(f"{self.empty:,} dropped because the answer is empty")
        return "; ".join(parts)


def prepare(
    source: Source,
    prompt_format: PromptFormat,
    max_length: int,
    *,
    all_tokens: bool = False,
    limit: int | None = None,
) -> tuple[Dataset, DataReport]:
    """Tokenise training examples with the team's one prompt format.

    Args:
        source: a JSONL or parquet file, a hub id (its train split), or live rows; each row has ``prompt`` and
            ``completion``, or ``messages``.
        max_length: longer examples lose the end of their answer; without room for one answer token they are dropped.
        all_tokens: learn the prompt too (every token but the first).
        limit: read only so many rows.

    Returns:
        columns ``input_ids`` (list of int32) and ``prompt_length`` (tokens ``[prompt_length:]`` are to be learned).

    Raises:
        DataError: no file, no rows, a row of another form (named), or nothing left after dropping.
    """
    if prompt_format.tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-sequence token, so a router could not learn to stop; set one")
    encoded = _Encoded()
    counts = {"cut": 0, "too_long": 0, "empty": 0}
    number = 0
    for number, row in enumerate(islice(read_rows(source), limit), start=1):
        prompt, answer = _encode(row, prompt_format, f"{_name(source)}, row {number}")
        if not answer or len(prompt) >= max_length:
            counts["too_long" if answer else "empty"] += 1
            continue
        counts["cut"] += len(prompt) + len(answer) > max_length
        encoded.add((prompt + answer)[:max_length], prompt_length=1 if all_tokens else len(prompt))
    report = DataReport(len(encoded), answer_tokens=encoded.answer_tokens, max_length=max_length, **counts)
    if number == 0:
        raise DataError(f"{_name(source)} holds no rows; give at least one example with {FIELDS}")
    if not report.kept:
        raise DataError(f"nothing is left of the {number} rows of {_name(source)}: {report}")
    return encoded.dataset(), report


class _Encoded:
    """Token ids one after another: as Python lists, 200,000 examples would take several gigabytes."""

    def __init__(self) -> None:
        self.ids, self.prompt_lengths = array("i"), array("i")
        self.offsets = array("q", [0])

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def answer_tokens(self) -> int:
        return len(self.ids) - sum(self.prompt_lengths)

    def add(self, ids: list[int], prompt_length: int) -> None:
        self.ids.extend(ids)
        self.offsets.append(len(self.ids))
        self.prompt_lengths.append(prompt_length)

    def dataset(self) -> Dataset:
        lists = list_column(np.array(self.offsets), np.array(self.ids, dtype=np.int32))
        return Dataset(pa.table({"input_ids": lists, "prompt_length": pa.array(np.array(self.prompt_lengths))}))


def list_column(offsets: np.ndarray, values: np.ndarray) -> pa.LargeListArray:
    """Row i is ``values[offsets[i]:offsets[i + 1]]``; 64-bit, for two billion tokens are not much."""
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))


def _encode(row: Row, prompt_format: PromptFormat, place: str) -> tuple[list[int], list[int]]:
    """Ids of prompt and answer; those of an empty answer are none at all, not a lone end of sequence."""
    try:
        prompt, answer = read_example(row)
        return prompt_format.encode(prompt), prompt_format.encode_answer(answer) if answer.strip() else []
    except (DataError, PromptError) as error:
        raise DataError(f"{place}: {error}") from error


def read_example(row: Row) -> tuple[Prompt, str]:
    """Prompt and answer of one row. Raises `DataError` if it has neither of the allowed forms."""
    if not isinstance(row, Mapping):
        raise DataError(f"an example is a mapping with {FIELDS}; got {type(row).__name__}")
    fields = [name for name, value in row.items() if value is not None]  # parquet fills absent fields with None
    if "prompt" in fields and "completion" in fields:
        return _prompt(row["prompt"]), _answer(row["completion"])
    if "messages" in fields:
        messages = _messages(row["messages"], "messages")
        if len(messages) < 2:
            raise DataError(f"messages holds {len(messages)}; it needs a question and the assistant's answer")
        return messages[:-1], _answer(messages[-1:])
    raise DataError(f"it has the fields {', '.join(map(repr, fields)) or '(none)'}; allowed are {FIELDS}")


def _prompt(value: Any) -> Prompt:
    return value if isinstance(value, str) else _messages(value, "prompt")


def _answer(value: Any) -> str:
    if isinstance(value, str):
        return value
    messages = _messages(value, "completion")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(repr(message["role"]) for message in messages)
        raise DataError(f"the answer is one message of the assistant; got {roles or 'no message'}")
    return messages[0]["content"]


def _messages(value: Any, field: str) -> list[dict[str, str]]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise DataError(f"{field} must be text or a list of messages; got {type(value).__name__}")
    for message in value:
        parts = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None,)
        if not all(isinstance(part, str) for part in parts):
            raise DataError(f"{field} must hold messages with 'role' and 'content' as text; got {message!r}")
    return [dict(message) for message in value]


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


def _name(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else "the given data"
