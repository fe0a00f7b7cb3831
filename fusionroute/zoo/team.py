"""A team over the zoo's experts: what it learns from, by which settings, and training it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionroute.errors import OutputExistsError
from fusionroute.output import write_text
from fusionroute.progress import Progress
from fusionroute.training.run import train
from fusionroute.training.run_folder import clear_run, is_finished, open_run
from fusionroute.training.settings import TrainSettings
from fusionroute.zoo.build import weights_folder
from fusionroute.zoo.judge import row
from fusionroute.zoo.tasks import TASKS, examples

# Everything the numbers depend on, beside the seed and the counts of examples. Rates are those of models ten thousand
# times smaller than the paper's; why these, is in docs/lab_log.md.
EXPERTS = ("math", "code", "chat")
ROUTER_START = "chat"  # the paper starts from the instruction-following expert
PROMPT = "chat_template"
SCORE: dict[str, Any] = {"batch_size": 64}
SFT: dict[str, Any] = {"learning_rate": 2e-3, "batch_size": 16, "epochs": 5, "group_by_length": True}
CDPO: dict[str, Any] = {"learning_rate": 1e-4, "batch_size": 16, "epochs": 2, "group_by_length": True}
PAIRS: dict[str, Any] = {"checker": "fusionroute.zoo.judge:judge", "samples": 0, "max_new_tokens": 80}
PER_TASK, PREFERENCE_PER_TASK = 400, 300

TRAIN_FILE, PREFERENCE_FILE = "train.jsonl", "preference.jsonl"


def team_settings(
    folder: Path, *, seed: int, sft: Mapping[str, Any] = SFT, cdpo: Mapping[str, Any] | None = CDPO
) -> TrainSettings:
    """The team file, as `fusionroute train` would read it, on the data in ``folder``; ``cdpo=None``: stage 1 alone."""
    values: dict[str, Any] = {
        "experts": {name: str(weights_folder(name)) for name in EXPERTS},
        "router": {"init": str(weights_folder(ROUTER_START))},
        "prompt": PROMPT,
        "data": {"train": str((folder / TRAIN_FILE).resolve())},
        "score": SCORE,
        "sft": dict(sft),
        "seed": seed,
        "device": "cpu",  # for models this small an accelerator would wait most of the time
    }
    if cdpo is not None:
        values |= {"cdpo": dict(cdpo), "pairs": {**PAIRS, "prompts": str((folder / PREFERENCE_FILE).resolve())}}
    return TrainSettings.parse(values)


def train_team(
    output: Path,
    *,
    seed: int,
    per_task: int = PER_TASK,
    preference_per_task: int = PREFERENCE_PER_TASK,
    sft: Mapping[str, Any] = SFT,
    cdpo: Mapping[str, Any] | None = CDPO,
    progress: Progress,
    overwrite: bool = False,
) -> bool:
    """Train a router on examples of every task; False if ``output`` holds that very team already.

    Raises:
        OutputExistsError: ``output`` holds something else, or was trained on other examples.
    """
    settings = team_settings(output, seed=seed, sft=sft, cdpo=cdpo)
    if overwrite:
        _clear(output)
    open_run(output, settings)
    write_data(output, per_task, preference_per_task if cdpo is not None else 0, seed)
    if is_finished(output):
        return False
    train(settings, output, progress=progress)
    return True


def write_data(folder: Path, per_task: int, preference_per_task: int, seed: int) -> None:
    """Examples to learn from, and prompts to make mistakes on, from splits that share none with the test.

    Raises:
        OutputExistsError: ``folder`` holds others.
    """
    _write(folder / TRAIN_FILE, "train", per_task, seed)
    if preference_per_task:
        _write(folder / PREFERENCE_FILE, "preference", preference_per_task, seed)


def _clear(output: Path) -> None:
    clear_run(output)  # refuses a folder that no run has written
    for name in (TRAIN_FILE, PREFERENCE_FILE):
        (output / name).unlink(missing_ok=True)


def _write(path: Path, split: str, count: int, seed: int) -> None:
    rows: Sequence[dict[str, Any]] = [row(example) for task in TASKS for example in examples(task, split, count, seed)]
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
    if path.is_file() and path.read_text(encoding="utf-8") != lines:
        raise OutputExistsError(
            f"{path.parent} was trained on other examples; choose another output folder, or replace it (--overwrite)"
        )
    write_text(path, lines)
