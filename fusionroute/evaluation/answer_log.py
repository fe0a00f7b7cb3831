"""Answers on disk as they are written, so that an interrupted task goes on where it stopped."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from fusionroute.engine.sequence import Completion, TraceRecord


class AnswerLog:
    """JSON lines: first what the answers depend on, then one answer a line. Use it in a ``with`` block.

    Args:
        path: an existing log is read; one of other conditions, or a last line that was half-written, is dropped.
        conditions: all that the answers depend on, as JSON.
    """

    def __init__(self, path: Path, conditions: Any):
        self.path = path
        self.conditions = json.loads(json.dumps(conditions))
        self.known: dict[str, Completion] = {}
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        self.known = dict(self._read())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [_line(self.conditions), *(_line([key, asdict(answer)]) for key, answer in self.known.items())]
        self._file = self.path.open("w", encoding="utf-8")
        self._file.writelines(lines)
        self._file.flush()
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

    def _read(self) -> Iterator[tuple[str, Completion]]:
        if not self.path.is_file():
            return
        lines = iter(self.path.read_text(encoding="utf-8", errors="replace").splitlines())
        if _parsed(next(lines, "")) != self.conditions:
            return
        for line in lines:
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
    return Completion(**values | {"trace": [_trace_record(each) for each in values["trace"]]})


def _trace_record(values: dict[str, Any]) -> TraceRecord:
    top = tuple((token, logprob) for token, logprob in values["top_logprobs"])
    return TraceRecord(**values | {"weights": tuple(values["weights"]), "top_logprobs": top})
