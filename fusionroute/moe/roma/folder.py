"""What may be written where: a run continues its own folder, starts an empty one, and touches nobody else's."""

import shutil
from pathlib import Path
from typing import Literal

from fusionroute.config import changes, read_yaml
from fusionroute.errors import OutputExistsError, SettingsError
from fusionroute.moe.roma.router_delta import DELTA_FILE
from fusionroute.moe.roma.settings import RoMASettings
from fusionroute.output import clear_leftovers, is_empty, write_text

SETTINGS_FILE, PATHWAYS_FOLDER, ORACLE_FOLDER, MODEL_FOLDER = "settings.yaml", "pathways", "oracle", "model"
CHECKPOINTS, REPORT_FILE = "checkpoints", "roma.json"  # the report comes last: a folder that has it is finished
POINTS_FOLDER, SWEEP_FILE = "points", "sweep.json"
SHARED = (MODEL_FOLDER, DELTA_FILE, PATHWAYS_FOLDER, ORACLE_FOLDER)
OWN = {"train": (REPORT_FILE, CHECKPOINTS), "sweep": (SWEEP_FILE, POINTS_FOLDER)}  # what each of both leaves beside
# These may change between a run and its continuation: they move work or reports about, not results
FREE = (
    "device", "batch_size", "save", "sweep", "optimiser.save_steps", "optimiser.logging_steps",
    "optimiser.gradient_checkpointing",
)  # fmt: skip


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: Trainer writes ``trainer_state.json`` last."""
    complete = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def open_run(
    folder: Path, settings: RoMASettings, kind: Literal["train", "sweep"] = "train", *, overwrite: bool = False
) -> None:
    """Take ``folder`` for this run: a new one, an empty one, or one that these settings have begun.

    Args:
        overwrite: remove what a run has left there.

    Raises:
        OutputExistsError: it holds something else, or a run of the other kind or of other settings, naming the options
            that differ.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; give a folder")
    if folder.is_dir() and not is_empty(folder) and not (folder / SETTINGS_FILE).is_file():
        raise OutputExistsError(f"{folder} holds files but no {SETTINGS_FILE}, so it is no run; choose another folder")
    if overwrite:
        for part in (*(each for parts in OWN.values() for each in parts), *SHARED):
            path = folder / part
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if other := [name for name in OWN if name != kind and any((folder / part).exists() for part in OWN[name])]:
        raise OutputExistsError(f"{folder} holds what `roma {other[0]}` wrote; choose another output folder")
    if any((folder / part).exists() for part in OWN[kind]):
        _refuse_other_settings(folder, settings, set(FREE) - ({"sweep"} if kind == "sweep" else set()))
    clear_leftovers(folder)
    write_text(folder / SETTINGS_FILE, settings.to_yaml())


def _refuse_other_settings(folder: Path, settings: RoMASettings, free: set[str]) -> None:
    try:
        before = RoMASettings.parse(read_yaml(folder / SETTINGS_FILE))
    except SettingsError as error:
        raise OutputExistsError(f"{folder / SETTINGS_FILE} is not a run's ({error}); choose another folder") from error
    differences = changes(before, settings, free)
    if differences:
        raise OutputExistsError(
            f"{folder} holds another run ({'; '.join(differences)}); "
            "choose another output folder, or ask for it to be overwritten"
        )
