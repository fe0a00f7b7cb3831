"""Prompts from the command line, a file or a pipe."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusionroute.errors import DataError, PromptError, SettingsError
from fusionroute.rows import not_utf8, numbered_lines, parse_json


def read_prompts(arguments: list[str] | None, file: Path | None) -> list[Any]:
    if arguments and file:
        raise SettingsError("prompts are given twice, as arguments and as --file; leave one out")
    if arguments:
        _check(
            arguments, [f"prompt {at}" if len(arguments) > 1 else "the prompt" for at in range(1, len(arguments) + 1)]
        )
        return list(arguments)
    if file is None and sys.stdin.isatty():
        raise PromptError("no prompt; write one after the team, give --file, or pipe prompts in, one a line")
    found = list(_piped() if file is None else _lines(file))
    if not found:
        raise PromptError(f"{file or 'the input'} holds no prompt; give at least one line")
    is_jsonl = file is not None and file.suffix == ".jsonl"
    prompts = [_prompt_of(line, place) if is_jsonl else line for place, line in found]
    _check(prompts, [place for place, _ in found])
    return prompts


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    if not file.is_file():
        raise DataError(f"no prompts file at {file}; give a text file of one prompt a line, or JSON lines (*.jsonl)")
    return numbered_lines(file)


def _piped() -> Iterator[tuple[str, str]]:
    try:
        lines = sys.stdin.read().split("\n")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise not_utf8(f"line {number} of the input", error) from None
    return ((f"line {number} of the input", line) for number, line in enumerate(lines, 1) if line.strip())


def _check(prompts: list[Any], places: list[str]) -> None:
    from fusionroute.answering import check_text

    for prompt, place in zip(prompts, places, strict=True):
        check_text(prompt, place)


def _prompt_of(line: str, place: str) -> Any:
    record = parse_json(line, place)
    found = [record[key] for key in ("prompt", "messages") if key in record] if isinstance(record, dict) else []
    if len(found) != 1:
        raise DataError(f"{place} is to be an object with either `prompt` or `messages`; got {line[:80]}")
    return found[0]


def as_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
