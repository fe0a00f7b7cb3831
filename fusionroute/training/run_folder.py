"""What may be written where: a run continues its own folder, starts an empty one, and touches nobody else's."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fusionroute.config import read_yaml
from fusionroute.errors import OutputExistsError, SettingsError
from fusionroute.models.team import ROUTER_FOLDER, TEAM_FILE
from fusionroute.output import write_text
from fusionroute.training.scores import SCORES_FILE
from fusionroute.training.settings import TrainSettings

SETTINGS_FILE = "settings.yaml"
SCORES_FOLDER = "scores"
CHECKPOINTS_FOLDER = "checkpoints"
SFT_PARTS = (TEAM_FILE, ROUTER_FOLDER, "README.md", CHECKPOINTS_FOLDER)  # the team file goes first: it says "finished"

# These may change between a run and its continuation: they move work or reports about, not results
FREE = ("device", "score.batch_size", "sft.save_steps", "sft.logging_steps", "sft.gradient_checkpointing")
# Before the first SFT step these have not been used yet
SFT_ONLY = ("sft", "seed", "router.head_bias", "router.dtype")


def open_run(folder: str | Path, settings: TrainSettings) -> Path:
    """Take ``folder`` for this run: a new one, an empty one, or one that these settings have begun.

    Raises:
        OutputExistsError: it holds something else, or a run of other settings, naming the options that differ.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    _refuse_other_settings(folder, settings)
    write_text(folder / SETTINGS_FILE, settings.to_yaml())
    return folder


def clear_run(folder: str | Path, *, keep_scores: bool = False) -> None:
    """Remove what a run of ours has written, and nothing else. Raises `OutputExistsError` if the folder is no run."""
    folder = Path(folder)
    _refuse_foreign(folder)
    for part in (*SFT_PARTS, *(() if keep_scores else (SCORES_FOLDER,))):
        path = folder / part
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SETTINGS_FILE).is_file():
        raise OutputExistsError(
            f"{folder} holds files but no {SETTINGS_FILE}, so it is no training run and is left alone; "
            "choose another output folder"
        )


def is_finished(folder: Path) -> bool:
    return (folder / TEAM_FILE).is_file()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: Trainer writes ``trainer_state.json`` last, so one without it is half-written."""
    complete = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _free_options(folder: Path) -> tuple[str, ...] | None:
    """Options that may still change, given what ``folder`` has; None if that is all of them."""
    if is_finished(folder) or last_checkpoint(folder / CHECKPOINTS_FOLDER):
        return FREE
    return (*FREE, *SFT_ONLY) if (folder / SCORES_FOLDER / SCORES_FILE).is_file() else None


def _refuse_other_settings(folder: Path, settings: TrainSettings) -> None:
    unused = _free_options(folder)
    if unused is None:
        return
    try:
        found = dict(_flat(TrainSettings.parse(read_yaml(folder / SETTINGS_FILE)).model_dump(mode="json")))
    except SettingsError as error:
        raise OutputExistsError(f"{folder / SETTINGS_FILE} is not a run's ({error}); choose another folder") from error
    wanted = dict(_flat(settings.model_dump(mode="json")))
    differences = [
        f"{key} was {found.get(key)!r}, is now {wanted.get(key)!r}"
        for key in dict.fromkeys([*found, *wanted])
        if found.get(key) != wanted.get(key) and not any(key == name or key.startswith(f"{name}.") for name in unused)
    ]
    if not differences and list(found) != list(wanted):
        differences = ["the order of the experts, which is that of the route head"]
    if differences:
        raise OutputExistsError(
            f"{folder} holds another run ({'; '.join(differences)}); "
            "choose another output folder, or ask for it to be overwritten"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
