"""Where a task's questions come from: local files instead of the hub, and what to say when the hub does not answer."""

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import datasets
import jinja2.meta
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset, DatasetDict
from huggingface_hub import constants
from lm_eval.utils import env as templates

from fusionroute.config import nearest
from fusionroute.errors import DataError, SettingsError
from fusionroute.rows import numbered_lines, parse_json

FORMATS = (".jsonl", ".json", ".parquet", ".csv")
# What tasks read by functions rather than by templates, from which it cannot be told.
COLUMNS = {
    "google/IFEval": ("key", "prompt", "instruction_id_list", "kwargs"),
    "HuggingFaceH4/MATH-500": ("problem", "solution"),
    "EleutherAI/hendrycks_math": ("problem", "solution"),
}
TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")
SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")

Config = Mapping[str, Any]


def local_data(task: str, config: Config, data: str | Mapping[str, str], shots: int) -> dict[str, Any]:
    """What to put over a task's config so that it reads local files: one for each split, or one for its questions.

    Raises:
        SettingsError: a split that the task does not have.
        DataError: a file is missing, empty or malformed, a column or a split that the task needs is missing.
    """
    asked, examples = questions_split(config), shots_split(config)
    files = {asked: data} if isinstance(data, str) else dict(data)
    known = list(dict.fromkeys(split for split in (asked, examples, *map(config.get, SPLITS)) if split))
    for split in files:
        if split not in known:
            raise SettingsError(f"data of task {task!r}: {nearest(split, known)}")
    needed = {asked: "its questions"} | ({examples: f"its {shots} examples"} if shots and examples else {})
    for split, what in needed.items():
        if split not in files:
            way_out = "" if split == asked else ", or set `num_fewshot: 0`"
            raise DataError(
                f"task {task!r} takes {what} from the split {split!r}: add `{split}: file.jsonl` to `data`{way_out}"
            )
    splits = DatasetDict({split: _read(Path(file)) for split, file in files.items()})
    for split, rows in splits.items():
        _check_columns(task, config, rows, files[split])
    dropped: dict[str, Any] = {key: None for key in SPLITS if config.get(key) not in splits}
    if (shown := config.get("fewshot_config") or {}).get("split") not in (None, *splits):
        dropped["fewshot_config"] = {**shown, "split": None}
    return {"custom_dataset": lambda **_: splits, "dataset_kwargs": None, **dropped}


def questions_split(config: Config) -> str:
    """The split that is asked; lm-eval prefers ``test``."""
    return config.get("test_split") or config.get("validation_split") or "test"


def shots_split(config: Config) -> str | None:
    """The split that examples are shown from; None where the task brings them along, or has none to show."""
    shown = config.get("fewshot_config") or {}
    if shown.get("samples"):
        return None
    others = (config.get(key) for key in ("fewshot_split", "training_split", "validation_split"))
    return shown.get("split") or next((split for split in others if split), None)


def columns(config: Config) -> list[str]:
    """The columns that a task's questions have, as far as its YAML tells."""
    if config.get("dataset_path") in COLUMNS:
        return list(COLUMNS[config["dataset_path"]])
    found: list[str] = []
    for template in (config.get(key) for key in TEMPLATES):
        if isinstance(template, str):
            found += [template] if template.isidentifier() else _variables(template)
    return list(dict.fromkeys(found))


def unreachable(task: str, config: Config, shots: int, error: Exception) -> DataError:
    """One line for a data set that did not come: which, why, and how to do without the hub.

    Args:
        config: of the task, or of the first one of a group or tag.
    """
    splits = [questions_split(config)]
    if shots and (examples := shots_split(config)) not in (None, splits[0]):
        splits.append(str(examples))
    part = f"config {config['dataset_name']!r}, " if config.get("dataset_name") else ""
    files = ", ".join(f"{split}: {split}.jsonl" for split in splits)
    needed = f", with the columns {', '.join(columns(config))}" if columns(config) else ""
    owner = "the task" if config.get("task") == task else f"each of its tasks, named one by one ({config.get('task')})"
    return DataError(
        f"task {task!r} needs the data set {config.get('dataset_path')} ({part}{' and '.join(splits)}), which could "
        f"not be fetched: {' '.join(str(error).split())}. Run it once with network, so that it is in the Hugging Face "
        f"cache, or make it local by `data: {{{files}}}` at {owner} in the compare file{needed}"
    )


def unreadable(task: str, config: Config, error: Exception, data: object) -> DataError:
    """One line for a row that the task's prompt cannot be made from."""
    undefined = re.match(r"'(\w+)' is undefined", str(error))
    column = undefined[1] if undefined else str(error.args[0]) if isinstance(error, KeyError) else None
    problem = f"has no column {column!r}" if column else f"does not fit: {' '.join(str(error).split())}"
    return DataError(f"the data of task {task!r} ({data}) {problem}; it needs {', '.join(columns(config))}")


def unbuildable(task: str, config: Config, error: Exception) -> DataError:
    """One line for a task whose own functions and templates do not fit the data set that it names."""
    problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    name = f" {config['dataset_path']}" if config.get("dataset_path") else ""
    return DataError(
        f"task {task!r} cannot be made from its data set{name} ({problem}); put its functions and templates right, or "
        "give rows that fit by `data`"
    )


def hub_answers(seconds: float = 3.0) -> bool:
    """Whether the hub can be asked at all; `datasets` finds out by half a minute of retries."""
    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True  # only the proxy can tell
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=seconds).close()
    except OSError:
        return False
    return True


@contextmanager
def offline(is_offline: bool) -> Iterator[None]:
    """Within the block the Hugging Face libraries use their cache alone."""
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if is_offline:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _variables(template: str) -> list[str]:
    """Names that a template takes from its row, without those that it only asks about."""
    tree = templates.parse(template)
    asked = {
        test.node.name
        for test in tree.find_all(jinja2.nodes.Test)
        if test.name in ("defined", "undefined") and isinstance(test.node, jinja2.nodes.Name)
    }
    return sorted(jinja2.meta.find_undeclared_variables(tree) - asked)


def _check_columns(task: str, config: Config, rows: Dataset, file: str) -> None:
    """What lm-eval would not notice: a bare column name that is missing becomes the prompt itself."""
    bare = [config[key] for key in TEMPLATES if isinstance(config.get(key), str) and config[key].isidentifier()]
    for column in dict.fromkeys([*COLUMNS.get(config.get("dataset_path") or "", ()), *bare]):
        if column not in rows.column_names:
            raise DataError(
                f"{file} has no column {column!r}, which task {task!r} needs; it has {', '.join(rows.column_names)}"
            )


def _read(path: Path) -> Dataset:
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: data files end in {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"no data file at {path}; `data` takes paths relative to the working folder")
    try:
        rows = _parse(path)
    except DataError:  # it says where
        raise
    except (ValueError, TypeError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not len(rows):
        raise DataError(f"{path} is empty; it needs one row per question")
    return rows


def _parse(path: Path) -> Dataset:
    if path.suffix == ".parquet":
        return Dataset(pa.parquet.read_table(path))
    if path.suffix == ".csv":
        return Dataset(pa.csv.read_csv(path))
    if path.suffix == ".json":
        rows = parse_json(path.read_text(encoding="utf-8"), str(path), "a list of objects")
    else:
        rows = [parse_json(line, place) for place, line in numbered_lines(path)]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every row must be an object of columns")
    return Dataset.from_list(rows)
