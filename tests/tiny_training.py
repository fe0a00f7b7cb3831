"""What the tests of training share: models on disk, examples to learn from, a progress that remembers."""

import json
from pathlib import Path
from typing import Any

import tiny

NAMES = ("math", "code", "chat")


def save_model(folder: Path, seed: int, **overrides: Any) -> str:
    tiny.language_model("llama", seed, **overrides).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def make_examples(count: int) -> list[dict[str, Any]]:
    """Sums of mixed lengths; one chat among them, so that both forms are always in play."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"{n}+{n * n}=", "completion": f"{n + n * n}" + "!" * (n % 5)} for n in range(1, count)
    ]
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    return [*rows, {"messages": chat}]


def make_pairs(count: int) -> list[dict[str, Any]]:
    """Sums with a right and a wrong answer, of different lengths."""
    return [{"prompt": f"{n}+{n}=", "chosen": f"{2 * n}", "rejected": "no" * (n % 4 + 1)} for n in range(1, count + 1)]


class Recorder:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.advanced: list[tuple[int, str]] = []
        self.finished: list[str] = []

    def start(self, label: str, total: int) -> None:
        self.started.append((label, total))

    def advance(self, n: int, note: str = "") -> None:
        self.advanced.append((n, note))

    def finish(self, message: str) -> None:
        self.finished.append(message)
