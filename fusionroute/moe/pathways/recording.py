"""A folder of recorded pathways: what lies where, whose it is, and whether it is whole. Knows nothing of models.

* ``pathways.json``: what was recorded, of which model
* ``questions.jsonl``: the questions, as `read_questions` reads them
* ``00000.safetensors``: what was recorded of the first questions; ``00001`` of the next ones, and so on
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fusionroute.errors import DataError, OutputExistsError
from fusionroute.moe.questions.questions import Question, read_questions
from fusionroute.output import clear_leftovers, is_empty, write_json, write_text

logger = logging.getLogger(__name__)

RECORD_FILE, QUESTIONS_FILE = "pathways.json", "questions.jsonl"
OWNER, CHECKSUM = "fusionroute.recorded_of", "fusionroute.checksum"
NOTED = ("model", "questions_per_file")  # said in the record, but no reason to refuse it
AGAIN = "delete it and record again, which goes on from there"

Record = dict[str, Any]


class Shards:
    """The files of one recording.

    Args:
        record: as in ``pathways.json``. Its hash goes into every file, so that a file of anything else is never taken
            for one of these.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]):
        self.folder = folder
        self.questions, self.size = record["questions"], record["questions_per_file"]
        told = {key: value for key, value in record.items() if key != "model"}
        self.owner = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def mark(self, number: int) -> str:
        """Whose file it is, and which: files that change places are noticed too."""
        return f"{self.owner}/{number}"

    def __len__(self) -> int:
        return -(-self.questions // self.size)

    def rows(self, number: int) -> range:
        return range(number * self.size, min((number + 1) * self.size, self.questions))

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05}.safetensors"

    def has(self, number: int) -> bool:
        """Whether a file can stay. One that cannot be read or does not fit is recorded again, which costs little."""
        if not self.path(number).is_file():
            return False
        try:
            self.read(number)
        except DataError as error:
            logger.warning("%s (done now)", error)
            return False
        return True

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        path, tensors = self.path(number), {name: tensor.contiguous() for name, tensor in tensors.items()}
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            save_file(tensors, temporary, metadata={OWNER: self.mark(number), CHECKSUM: _checksum(tensors)})
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path} could not be written ({error}); make room and record again, which goes on from there"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, number: int) -> dict[str, Tensor]:
        """Raises `DataError` if the file cannot be read, is not as it was written, or belongs to something else."""
        path = self.path(number)
        try:
            with safe_open(path, framework="pt") as file:
                marks = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read ({error}); {AGAIN}") from error
        if marks.get(OWNER) != self.mark(number):
            raise DataError(f"{path} was recorded of something else; {AGAIN}")
        if marks.get(CHECKSUM) != _checksum(tensors):
            raise DataError(f"{path} was changed since it was recorded; {AGAIN}")
        return tensors

    def read_all(self) -> dict[str, Tensor]:
        """Every question's, in order. Raises as `read` does, and if a file is missing."""
        missing = [number for number in range(len(self)) if not self.path(number).is_file()]
        if missing:
            raise DataError(
                f"{self.folder} lacks {len(missing)} of its {len(self)} files (first {self.path(missing[0]).name}); "
                "record again, which goes on from there"
            )
        parts = [self.read(number) for number in range(len(self))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def open_recording(folder: Path, wanted: Record, questions: Sequence[Question], *, overwrite: bool) -> Shards:
    """The shards of a new recording, or of the one that stands there if it is of the same things.

    Raises:
        DataError: it is of other things, which are named.
        OutputExistsError: the folder holds something that is no recording.
    """
    found = read_record(folder)
    if found is None and folder.exists() and not (folder.is_dir() and _is_ours(folder)):
        raise OutputExistsError(f"{folder} holds something that is no recording of pathways; choose another folder")
    others = differences(found, wanted) if found is not None else []
    if others and not overwrite:
        raise DataError(
            f"{folder} holds pathways of something else ({'; '.join(others)}); "
            "choose another folder, or ask for it to be overwritten"
        )
    clear_leftovers(folder)
    if found is not None and not others:
        return Shards(folder, found)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_recording(folder)
    rows = (json.dumps(question.as_row(), ensure_ascii=False) for question in questions)
    write_text(folder / QUESTIONS_FILE, "\n".join(rows) + "\n")
    write_json(folder / RECORD_FILE, wanted)  # last: with it the folder is a recording
    return Shards(folder, wanted)


def _is_ours(folder: Path) -> bool:
    """Empty, or left by a run that was killed before its record stood there."""
    return is_empty(folder) or [path.name for path in folder.iterdir() if path.suffix != ".tmp"] == [QUESTIONS_FILE]


def _remove_recording(folder: Path) -> None:
    """The record first, for without it the rest is nothing; and nothing that is not ours."""
    for name in (RECORD_FILE, QUESTIONS_FILE):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("[0-9]" * 5 + ".safetensors"):
        path.unlink()


def read_record(folder: Path) -> Record | None:
    """What ``pathways.json`` says, or None without one. Raises `DataError` if it is something else."""
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        if min(record["questions_per_file"], record["questions"]) < 1:
            raise ValueError("it speaks of no questions")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the record of pathways ({error!r}); choose another folder") from error
    return record


def read_recorded_questions(folder: Path, record: Record) -> list[Question]:
    """Raises `DataError` if they are not those that were recorded."""
    questions = read_questions(folder / QUESTIONS_FILE)
    if questions_hash(questions) != record["data"]:
        raise DataError(f"{folder / QUESTIONS_FILE} was changed since it was recorded; record again elsewhere")
    return questions


def questions_hash(questions: Sequence[Question]) -> str:
    digest = hashlib.sha256()
    for question in questions:
        digest.update(json.dumps(question.as_row(), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def differences(found: Record, wanted: Record) -> list[str]:
    """What is another thing in ``found`` than in ``wanted``, in words; a model's name and sizes of files may differ."""
    return [
        f"{key} was {_short(found.get(key))}, is now {_short(value)}"
        for key, value in wanted.items()
        if key not in NOTED and found.get(key) != value
    ]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} ({value[0]} to {value[-1]})" if value else "none"
    text = str(value)
    return text[:8] + "…" if len(text) == 64 else text  # hashes only need to be seen to differ


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
