"""A folder of scores: what lies where, whose it is, and whether it is whole. Knows nothing of models.

* ``scores.json``: what the scores belong to; it names an expert, with a checksum, once all its files are there
* ``data.parquet``: the examples as `prepare` makes them
* ``<expert>/00000.parquet``: what the expert says of the longest examples; ``00001`` of the next ones, and so on

An expert's numbers take 8 bytes per answer token: float32 ``nll``, int32 ``top_choice``. Compressed it is about 5.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from fusionroute.errors import DataError
from fusionroute.training.scoring.fingerprint import prompt_lengths, token_counts

logger = logging.getLogger(__name__)

SCORES_FILE = "scores.json"
DATA_FILE = "data.parquet"
RECORDED = ("data", "vocabulary", "examples_per_file", "experts", "checksums")
COLUMNS = ["nll", "top_choice"]
OWNER, CHECKSUM = b"fusionroute.scores_of", b"fusionroute.checksum"
# Loss values hardly repeat, so a dictionary of them only adds; their bytes, each kind together, pack well
PACKING: dict[str, Any] = {"use_dictionary": False, "use_byte_stream_split": True, "compression": "zstd"}


@dataclass(frozen=True)
class Layout:
    """Which examples stand in which file: the longest first, so that a batch too large for memory shows at once."""

    order: np.ndarray
    answer_lengths: np.ndarray
    examples_per_file: int

    @classmethod
    def of(cls, dataset: Dataset, examples_per_file: int) -> "Layout":
        counts = token_counts(dataset)
        return cls(np.argsort(-counts, kind="stable"), counts - prompt_lengths(dataset), examples_per_file)

    def __len__(self) -> int:
        return -(-len(self.order) // self.examples_per_file)

    def rows(self, number: int) -> np.ndarray:
        """Places in the dataset of the examples of one file."""
        return self.order[number * self.examples_per_file : (number + 1) * self.examples_per_file]


class ExpertFiles:
    """The files of one expert.

    Args:
        record: as in ``scores.json``. What it says of the data, the tokens and this expert goes into every file, so
            that a file of anything else is never taken for one of these.
    """

    def __init__(self, folder: Path, name: str, layout: Layout, record: Mapping[str, Any]):
        self.folder, self.layout = folder / name, layout
        belongs_to = [record["data"], record["vocabulary"], record["experts"][name]]
        self.owner = hashlib.sha256(json.dumps(belongs_to, sort_keys=True).encode()).hexdigest().encode()

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05}.parquet"

    def are_complete(self) -> bool:
        return all(self.path(number).is_file() for number in range(len(self.layout)))

    def has(self, number: int) -> bool:
        """Whether a file can stay. One that cannot be read or does not fit is scored again, which costs little."""
        if not self.path(number).is_file():
            return False
        try:
            self.read(number)
        except DataError as error:
            logger.warning("%s (done now: its examples are scored again)", error)
            return False
        return True

    def write(self, number: int, table: pa.Table) -> None:
        with whole_file(self.path(number)) as temporary:
            marks = {OWNER: self.owner, CHECKSUM: checksum(table).encode()}
            pq.write_table(table.replace_schema_metadata(marks), temporary, **PACKING)

    def read(self, number: int) -> pa.Table:
        """Raises `DataError` if the file cannot be read, is not as it was written, or belongs to something else."""
        table = read_table(self.path(number))
        marks = table.schema.metadata or {}
        if marks.get(OWNER) != self.owner or not self._fits(table, self.layout.rows(number)):
            raise DataError(f"{self.path(number)} holds scores of something else; delete it and score again")
        if marks.get(CHECKSUM) != checksum(table).encode():
            raise changed(self.path(number))
        return table

    def _fits(self, table: pa.Table, rows: np.ndarray) -> bool:
        lengths = self.layout.answer_lengths[rows]
        return table.column_names == COLUMNS and all(
            np.array_equal(_lengths(lists), lengths) for lists in table.columns
        )

    def read_all(self) -> pa.Table:
        """Every example, in the dataset's order. Raises as `read` does."""
        table = pa.concat_tables(self.read(number).replace_schema_metadata() for number in range(len(self.layout)))
        return table.combine_chunks().take(pa.array(np.argsort(self.layout.order)))


def _lengths(lists: pa.ChunkedArray) -> np.ndarray:
    return pc.list_value_length(lists).to_numpy()


def checksum(table: pa.Table) -> str:
    """Of every number, and where each example ends."""
    digest = hashlib.sha256()
    for column in table.columns:
        digest.update(_lengths(column).astype(np.int64).tobytes())
        digest.update(pc.list_flatten(column).to_numpy().tobytes())
    return digest.hexdigest()


def changed(path: Path) -> DataError:
    return DataError(f"{path} was changed since it was scored; delete it and score again")


def read_record(folder: Path) -> dict[str, Any] | None:
    """What ``scores.json`` says, or None without one. Raises `DataError` if it is something else."""
    path = folder / SCORES_FILE
    if not path.is_file():
        return None
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        return {key: recorded[key] for key in RECORDED}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the record of scores ({error!r}); score into another folder") from error


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    with whole_file(folder / SCORES_FILE) as temporary:
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def refuse_other_scores(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Raise `DataError`, naming what differs, if ``folder`` has scores of other data, tokens or experts."""
    found = read_record(folder)
    if found is None:
        return
    differences = [
        *_differences("data", found["data"], wanted["data"]),
        *_differences("tokenizer", {"vocabulary": found["vocabulary"]}, {"vocabulary": wanted["vocabulary"]}),
    ]
    for name in found["experts"].keys() & wanted["experts"].keys():
        differences += _differences(f"expert {name!r}", found["experts"][name], wanted["experts"][name])
    if differences:
        raise DataError(
            f"{folder} holds scores of something else ({'; '.join(differences)}); "
            "choose another output folder, or ask for it to be overwritten"
        )


def _differences(what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [
        f"{what}: {key} was {_short(found.get(key))}, is now {_short(value)}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text[:8] + "…" if len(text) == 64 else text  # hashes only need to be seen to differ


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes ``path`` when the block ends well, and is removed when it does not.

    The name is the same each time, so a killed run leaves at most one behind. Raises `DataError` if the disk is full.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path} could not be written ({error}); {_free(path)} free on that disk. "
            "Make room and run the same command again: it continues after the last whole file"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _free(path: Path) -> str:
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return f"{shutil.disk_usage(there).free / 2**30:.2f} GiB"


def read_table(path: Path) -> pa.Table:
    """Raises `DataError` if it is missing, cut off or no parquet."""
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it and score again") from error
