"""Rows of text: from wherever they are, and what stands in them. Knows nothing of tokens."""

import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from fusionroute.errors import DataError
from fusionroute.models.prompt import Prompt
from fusionroute.rows import Row, Source, read_file, read_messages

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
        return read_file(path)
    looks_like_path = path.is_absolute() or str(source).startswith((".", "~")) or path.suffix or path.exists()
    if looks_like_path or os.environ.get("HF_HUB_OFFLINE") == "1":
        raise DataError(f"no data file at {source}; give a .jsonl or .parquet file, or a hub id")
    return _read_hub(str(source))


def _read_hub(hub_id: str) -> Iterator[Row]:
    from datasets import load_dataset  # takes most of a second, which files of one's own do not need

    try:
        return iter(load_dataset(hub_id, split="train"))
    except Exception as error:  # the hub client has many kinds; each means the same to the user
        raise DataError(
            f"no file and no reachable hub dataset {hub_id!r} ({type(error).__name__}: {error}); "
            "give a .jsonl or .parquet file, or a hub id"
        ) from error


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
