"""Verdicts on disk: each is written as soon as it is there, so that none is paid for twice."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from fusionroute.errors import DataError, OutputExistsError
from fusionroute.evaluation.judge.protocol import Problem
from fusionroute.models.prompt import Prompt
from fusionroute.output import is_empty, write_json

NoScores = Problem | Literal["refused"]
VERDICTS_FILE, SETTINGS_FILE = "verdicts.jsonl", "settings.json"


@dataclass(frozen=True)
class Verdict:
    """What the judge said when it saw the answers of one item in one order.

    Attributes:
        item: the item's key.
        a_first: whether the answer of ``a`` stood first.
        score_a, score_b: by answer, whatever the order; None where there is a ``problem``.
        problem: why there are no scores: that of the reply, or ``"refused"``: the endpoint takes others, but not these
            answers (they are too long for the judge, say).
        reply: as it came; of a refusal what the endpoint said.
        model, prompt_tokens, completion_tokens: as the endpoint names and counts them.
    """

    item: str
    a_first: bool
    score_a: float | None
    score_b: float | None
    problem: NoScores | None
    reply: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    prompt: Prompt

    @property
    def place(self) -> tuple[str, bool]:
        return self.item, self.a_first


class VerdictFolder:
    """The folder of one judging: its settings and the verdicts so far. Nothing is written before `begin`.

    Args:
        settings: all that a verdict depends on beside its item; a folder with others is another judging.

    Raises:
        OutputExistsError: the folder holds something else, naming the settings that differ.
        DataError: its verdicts are damaged.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        self.settings = dict(settings)
        self._refuse_others()
        self.verdicts, self._whole = _read(self.folder / VERDICTS_FILE)

    def begin(self) -> TextIO:
        """Write the settings and open the verdicts for `append`; what a killed write left of a line is cut off."""
        write_json(self.folder / SETTINGS_FILE, self.settings)
        path = self.folder / VERDICTS_FILE
        path.touch()
        os.truncate(path, self._whole)
        return path.open("a", encoding="utf-8", errors="backslashreplace")  # half a surrogate pair, as JSON has it

    def append(self, file: TextIO, verdict: Verdict) -> None:
        """On return the verdict is on the disk."""
        file.write(json.dumps(asdict(verdict), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
        self.verdicts[verdict.place] = verdict

    def _refuse_others(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputExistsError(f"{self.folder} is a file; give a folder")
        if not self.folder.is_dir() or is_empty(self.folder):
            return
        path = self.folder / SETTINGS_FILE
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise OutputExistsError(
                f"{self.folder} holds files but no {SETTINGS_FILE} of a judging; choose another output folder"
            ) from None
        differences = [
            f"{key} was {found.get(key)!r}, is now {self.settings.get(key)!r}"
            for key in dict.fromkeys([*found, *self.settings])
            if found.get(key) != self.settings.get(key)
        ]
        if differences:
            raise OutputExistsError(
                f"{self.folder} holds another judging ({'; '.join(differences)}); choose another output folder"
            )


def _read(path: Path) -> tuple[dict[tuple[str, bool], Verdict], int]:
    """Verdicts by item and order, and how many bytes of the file are whole lines."""
    verdicts: dict[tuple[str, bool], Verdict] = {}
    whole = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.is_file() else (), 1):
        if not line.endswith(b"\n"):
            break  # a write was killed
        try:
            verdict = Verdict(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}:{number} is no verdict ({error}); remove that line to ask again") from None
        verdicts.setdefault(verdict.place, verdict)
        whole += len(line)
    return verdicts, whole
