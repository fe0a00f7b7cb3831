"""Prompts from the command line, a file or a pipe."""

import json
import sys
from pathlib import Path
from typing import Any

from fusionroute.errors import DataError, PromptError, SettingsError


def read_prompts(arguments: list[str] | None, file: Path | None) -> list[Any]:
    if arguments and file:
        raise SettingsError("give prompts or --file, not both")
    if arguments:
        _check(
            arguments, [f"prompt {at}" if len(arguments) > 1 else "the prompt" for at in range(1, len(arguments) + 1)]
        )
        return list(arguments)
    if file is not None and not file.is_file():
        raise DataError(f"no prompts file at {file}")
    if file is None and sys.stdin.isatty():
        raise PromptError("no prompt; write one after the team, give --file, or pipe prompts in, one a line")
    # JSON and prose may hold characters at which splitlines() would cut too, such as U+2028
    lines = _read(file).split("\n")
    found = [(at, line) for at, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise PromptError(f"{file or 'the input'} holds no prompt; give at least one line")
    is_jsonl = file is not None and file.suffix == ".jsonl"
    prompts = [_prompt_of(line, _place(file, at)) if is_jsonl else line for at, line in found]
    _check(prompts, [_place(file, at) for at, _ in found])
    return prompts


def _read(file: Path | None) -> str:
    try:
        return sys.stdin.read() if file is None else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{_place(file, line)} holds the byte 0x{error.object[error.start]:02x}, which is not UTF-8 there; "
            "save it as UTF-8"
        ) from None


def _place(file: Path | None, line: int) -> str:
    return f"line {line} of the input" if file is None else f"{file}:{line}"


def _check(prompts: list[Any], places: list[str]) -> None:
    from fusionroute.answering import check_text

    for prompt, place in zip(prompts, places, strict=True):
        check_text(prompt, place)


def _prompt_of(line: str, place: str) -> Any:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON ({error})") from None
    found = [record[key] for key in ("prompt", "messages") if key in record] if isinstance(record, dict) else []
    if len(found) != 1:
        raise DataError(f"{place}: an object with either `prompt` or `messages`")
    return found[0]


def as_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
