"""Two files of answers to the same prompts, matched prompt by prompt."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionroute.errors import DataError
from fusionroute.models.prompt import Prompt
from fusionroute.rows import numbered_lines, parse_json

PROMPT_KEYS, ANSWER_KEYS = ("prompt", "messages"), ("text", "answer")


@dataclass(frozen=True)
class Item:
    """A prompt (a string or messages) and what two methods answered."""

    prompt: Prompt
    a: str
    b: str

    @property
    def key(self) -> str:
        """Tells this item from all others, by all that a judge reads of it."""
        return digest([self.prompt, self.a, self.b])


def match_answers(path_a: str | Path, path_b: str | Path) -> list[Item]:
    """The prompts of the first file, in its order, with the answers of both.

    The files hold JSON lines: ``prompt`` (a string or messages) or ``messages``, and ``text`` or ``answer``, as
    ``fusionroute generate --json`` writes them; other fields are left alone. A file that ends in .json is a cell of a
    comparison. A prompt that is a string is the same as one user message. JSON lines have a prompt once; a cell has it
    as often as its task asks it, and the answers to it are matched in their order, which is the same in all cells.

    Raises:
        DataError: a file is missing, empty or malformed, has a prompt twice and is no cell, or lacks one of the other.
    """
    answers_a, answers_b = _read(Path(path_a)), _read(Path(path_b))
    for mine, theirs, name, other in ((answers_a, answers_b, path_a, path_b), (answers_b, answers_a, path_b, path_a)):
        lacking = [key for key in mine if key not in theirs]
        if lacking:
            prompt, number = lacking[0]
            again = f" (asked {number + 1} times)" if number else ""
            raise DataError(
                f"{other} lacks {len(lacking)} of the {len(mine)} prompts of {name}, first {_shown(prompt)}{again}; "
                "let both methods answer the same prompts"
            )
    return [Item(json.loads(key[0]), text, answers_b[key]) for key, text in answers_a.items()]


def digest(value: Any) -> str:
    """A short name for anything that JSON can hold; equal values have equal names."""
    return hashlib.sha256(_canonical(value).encode(errors="backslashreplace")).hexdigest()[:32]


def _read(path: Path) -> dict[tuple[str, int], str]:
    """Answers by the canonical form of their prompts, and by how often the file has that prompt before."""
    answers: dict[tuple[str, int], str] = {}
    places: dict[str, list[str]] = {}
    for place, record in _records(path):
        prompt = _canonical(_prompt(record, place))
        before = places.setdefault(prompt, [])
        if before and not _is_cell(path):
            raise DataError(f"{place} answers {_shown(prompt)} again, after {before[0]}; keep one answer a prompt")
        answers[prompt, len(before)] = _one_of(record, ANSWER_KEYS, place, str)
        before.append(place)
    if not answers:
        raise DataError(f"{path} holds no answers; give at least one")
    return answers


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Every record of a file, and where it stands: a line, or an example of a comparison's cell."""
    if not path.is_file():
        raise DataError(f"no answers file at {path}; give JSON lines as `fusionroute generate --json` writes them")
    if _is_cell(path):
        yield from ((f"{path}, example {at}", each) for at, each in enumerate(_examples(path), 1))
        return
    for place, line in numbered_lines(path):
        yield place, parse_json(line, place)


def _is_cell(path: Path) -> bool:
    return path.suffix == ".json"


def _examples(path: Path) -> list[Any]:
    cell = parse_json("\n".join(line for _, line in numbered_lines(path)), str(path), "a cell as `evaluate` does")
    if not isinstance(cell, dict) or not isinstance(cell.get("examples"), list):
        raise DataError(f"{path} is no cell of a comparison, which a .json file is taken for; JSON lines end in .jsonl")
    return [{key: each.get(key) for key in ("prompt", "answer")} for each in cell["examples"]]


def _prompt(record: Any, place: str) -> Any:
    prompt = _one_of(record, PROMPT_KEYS, place, (str, list))
    if isinstance(prompt, str):
        return prompt
    for message in prompt or [None]:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(
                f"{place}: messages are objects with a role and a content; got {_shown(_canonical(prompt))}"
            )
    turns = [{"role": message["role"], "content": message["content"]} for message in prompt]
    return turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else turns


def _one_of(record: Any, keys: tuple[str, ...], place: str, kind: type | tuple[type, ...]) -> Any:
    found = [record[key] for key in keys if key in record] if isinstance(record, dict) else []
    if len(found) != 1 or not isinstance(found[0], kind):
        wanted = " or ".join(f"`{key}`" for key in keys)
        raise DataError(f"{place}: an object with a text as either {wanted}; got {_shown(_canonical(record))}")
    return found[0]


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _shown(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
