"""What a file of answers is, so that a win rate says what was compared."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Origin:
    """A file of answers.

    Attributes:
        file: its name.
        sha256: of its bytes.
        method, task, seed: of a comparison's cell (``seed`` is None there if the answers depend on none).
    """

    file: str
    sha256: str
    method: str | None = None
    task: str | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """``FusionRoute, seed 0`` of a cell, else the file's name without its ending."""
        if self.method is None:
            return Path(self.file).stem
        return self.method if self.seed is None else f"{self.method}, seed {self.seed}"

    def record(self) -> dict[str, Any]:
        """As JSON, with the name."""
        return {"name": self.name, **asdict(self)}


def read_origin(path: str | Path) -> Origin:
    """Where the answers of a file come from; one that `match_answers` has accepted."""
    path = Path(path)
    content = path.read_bytes()
    cell = json.loads(content) if path.suffix == ".json" else {}
    return Origin(
        path.name, hashlib.sha256(content).hexdigest(), *(cell.get(key) for key in ("method", "task", "seed"))
    )


def title(answers_a: str | Path, answers_b: str | Path) -> str:
    """``A against B``, with the task if both are cells of the same one; by their paths if their names are the same."""
    a, b = read_origin(answers_a), read_origin(answers_b)
    if a.name == b.name:
        return f"{answers_a} against {answers_b}"
    task = f" on {a.task}" if a.task is not None and a.task == b.task else ""
    return f"{a.name} against {b.name}{task}"
