"""Answers on disk as they are written, so that an interrupted task goes on where it stopped."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from fusionroute.engine.sequence import Completion, Likeliest, TraceRecord
from fusionroute.errors import OutputExistsError
from fusionroute.output import write_text


class AnswerLog:
    """JSON lines: first what the answers depend on, then one answer a line. Use it in a ``with`` block.

    Args:
        path: an existing log of these conditions goes on; a last line that was half-written is dropped.
        conditions: all that the answers depend on, as JSON.

    Raises:
        OutputExistsError: the log is one of other conditions.
    """

    def __init__(self, path: Path, conditions: Any):
        self.path = path
        self.conditions = json.loads(json.dumps(conditions))
        self.known: dict[str, Completion] = {}
        self._file: TextIO | None = None

    @staticmethod
    def conditions_of(path: Path) -> Any:
        """What the answers of a log depend on; None if there is no log, or one that ends before it says so."""
        return _parsed(next(iter(_lines(path)), ""))

    def __enter__(self) -> Self:
        if self.conditions_of(self.path) not in (None, self.conditions):
            raise OutputExistsError(f"{self.path} has answers that were given under other conditions; remove it")
        self.known = dict(_answers(self.path))
        lines = [_line(self.conditions), *(_line([key, asdict(answer)]) for key, answer in self.known.items())]
        write_text(self.path, "".join(lines))
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, key: str, answer: Completion) -> None:
        """Keep one answer; it is on disk when this returns."""
        assert self._file is not None, "a log is written to inside its with block"
        self._file.write(_line([key, asdict(answer)]))
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """The answers are elsewhere now."""
        self.path.unlink(missing_ok=True)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _answers(path: Path) -> Iterator[tuple[str, Completion]]:
    for line in _lines(path)[1:]:
        found = _parsed(line)
        if found is None:
            return
        key, answer = found
        yield key, _completion(answer)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True) + "\n"  # so that no line separator in a text is taken for one here


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _completion(values: dict[str, Any]) -> Completion:
    prompt = values.get("prompt_logprobs")
    if prompt is not None:
        prompt = [(token, logprob, _likeliest(top)) for token, logprob, top in prompt]
    trace = [_trace_record(each) for each in values["trace"]]
    return Completion(**values | {"trace": trace, "prompt_logprobs": prompt})


def _trace_record(values: dict[str, Any]) -> TraceRecord:
    """Logs of former versions lack what records did not have then."""
    lists = {
        "weights": tuple(values["weights"]),
        "support": tuple(values.get("support", ())),
        "top_logprobs": _likeliest(values["top_logprobs"]),
        "candidates": tuple((name, _likeliest(top)) for name, top in values.get("candidates", ())),
    }
    return TraceRecord(**values | lists)


def _likeliest(values: Iterable[tuple[int, float]]) -> Likeliest:
    return tuple((token, logprob) for token, logprob in values)
