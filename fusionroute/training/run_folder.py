"""What may be written where: a run continues its own folder, starts an empty one, and touches nobody else's."""

import os
import shutil
from pathlib import Path

from fusionroute.config import changes, read_yaml
from fusionroute.errors import OutputExistsError, SettingsError
from fusionroute.models.team import ROUTER_FOLDER, TEAM_FILE
from fusionroute.output import clear_leftovers, is_empty, write_text
from fusionroute.training.scoring.scores import SCORES_FILE
from fusionroute.training.settings import TrainSettings

SETTINGS_FILE = "settings.yaml"
SCORES_FOLDER = "scores"
SFT_FOLDER = "sft"  # the team of stage 1, where a second stage follows
PAIRS_FILE = "pairs.jsonl"
PAIR_SCORES_FOLDER = "pair_scores"
SFT_CHECKPOINTS, CDPO_CHECKPOINTS = "checkpoints/sft", "checkpoints/cdpo"
MODEL_FOLDER = "model"  # what the fine-tuned baseline ends in, instead of a team
TEAM_PARTS = (TEAM_FILE, ROUTER_FOLDER, "README.md")  # the team file first: it says "finished"

# What each stage leaves, in their order; what a stage has left is worth nothing once an earlier one is done again.
PARTS = {
    "score": (SCORES_FOLDER,),
    "sft": (SFT_FOLDER, SFT_CHECKPOINTS),
    "pairs": (PAIRS_FILE, f"{PAIRS_FILE}.parts"),
    "cdpo": (PAIR_SCORES_FOLDER, CDPO_CHECKPOINTS),
}

# These may change between a run and its continuation: they move work or reports about, not results
_FREE_IN_STAGES = ("save_steps", "logging_steps", "gradient_checkpointing")
FREE = ("device", "score", *(f"{stage}.{option}" for stage in ("sft", "cdpo") for option in _FREE_IN_STAGES))
# What is first used by stage 1, by the making of pairs, by stage 2
SFT_OPTIONS = ("sft", "seed", "routing", "method", "router")
PAIR_OPTIONS = ("pairs", "data.pairs", "data.pairs_limit")
CDPO_OPTIONS = ("cdpo",)


def open_run(folder: str | Path, settings: TrainSettings) -> Path:
    """Take ``folder`` for this run: a new one, an empty one, or one that these settings have begun.

    Raises:
        OutputExistsError: it holds something else, or a run of other settings, naming the options that differ.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    _refuse_other_settings(folder, settings)
    for place in (folder, folder / SFT_FOLDER):
        clear_leftovers(place)
    write_text(folder / SETTINGS_FILE, settings.to_yaml())
    if settings.cdpo is not None and is_finished(folder) and not (folder / SFT_FOLDER).exists():
        _finished_was_stage_one(folder)
    return folder


def clear_run(folder: str | Path, *, since: str = "score") -> None:
    """Remove what a run of ours has written in the stage ``since`` and later ones, and nothing else.

    Raises:
        OutputExistsError: the folder is no run.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    stages = list(PARTS)
    later = [part for stage in stages[stages.index(since) :] for part in PARTS[stage]]
    for part in (*TEAM_PARTS, MODEL_FOLDER, *later):
        path = folder / part
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; give a folder")
    if folder.is_dir() and not is_empty(folder) and not (folder / SETTINGS_FILE).is_file():
        raise OutputExistsError(
            f"{folder} holds files but no {SETTINGS_FILE}, so it is no training run and is left alone; "
            "choose another output folder"
        )


def is_finished(folder: Path) -> bool:
    return (folder / TEAM_FILE).is_file() or (folder / MODEL_FOLDER).is_dir()


def stage_one_is_finished(folder: Path, settings: TrainSettings) -> bool:
    """Whether stage 1 is done where a second stage follows: a team, or the fine-tuned baseline's bare router."""
    last = TEAM_FILE if settings.makes_a_team else ROUTER_FOLDER
    return (folder / SFT_FOLDER / last).exists()


def _finished_was_stage_one(folder: Path) -> None:
    """A finished run to which a second stage is added: its team is that of stage 1."""
    target, moving = folder / SFT_FOLDER, folder / f".{SFT_FOLDER}.tmp"
    moving.mkdir(exist_ok=True)
    for part in TEAM_PARTS:
        if (folder / part).exists():
            os.replace(folder / part, moving / part)
    os.replace(moving, target)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: Trainer writes ``trainer_state.json`` last, so one without it is half-written."""
    complete = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _free_options(folder: Path) -> tuple[str, ...] | None:
    """Options that may still change, given what ``folder`` has; None if that is all of them."""
    has_second_stage = (folder / PAIR_SCORES_FOLDER).exists() or last_checkpoint(folder / CDPO_CHECKPOINTS)
    if has_second_stage or (is_finished(folder) and (folder / SFT_FOLDER).exists()):
        return FREE
    if (folder / PAIRS_FILE).exists() or (folder / f"{PAIRS_FILE}.parts").exists():
        return (*FREE, *CDPO_OPTIONS)
    if is_finished(folder) or (folder / SFT_FOLDER).exists() or last_checkpoint(folder / SFT_CHECKPOINTS):
        return (*FREE, *CDPO_OPTIONS, *PAIR_OPTIONS)
    is_scored = (folder / SCORES_FOLDER / SCORES_FILE).is_file()
    return (*FREE, *CDPO_OPTIONS, *PAIR_OPTIONS, *SFT_OPTIONS) if is_scored else None


def _refuse_other_settings(folder: Path, settings: TrainSettings) -> None:
    unused = _free_options(folder)
    if unused is None:
        return
    try:
        before = TrainSettings.parse(read_yaml(folder / SETTINGS_FILE))
    except SettingsError as error:
        raise OutputExistsError(f"{folder / SETTINGS_FILE} is not a run's ({error}); choose another folder") from error
    differences = changes(before, settings, unused)
    if not differences and list(before.experts) != list(settings.experts):
        differences = ["the order of the experts, which is that of the route head"]
    if differences:
        raise OutputExistsError(
            f"{folder} holds another run ({'; '.join(differences)}); "
            "choose another output folder, or ask for it to be overwritten"
        )
