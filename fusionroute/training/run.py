"""From a team file to a team, in one resumable command or stage by stage."""

from collections.abc import Callable
from pathlib import Path

from fusionroute.errors import DataError, SettingsError
from fusionroute.progress import Progress, Silent
from fusionroute.training import stages
from fusionroute.training.processes import join_processes
from fusionroute.training.run_folder import (
    PAIRS_FILE,
    SCORES_FOLDER,
    SFT_FOLDER,
    clear_run,
    is_finished,
    open_run,
    stage_one_is_finished,
)
from fusionroute.training.settings import TrainSettings
from fusionroute.training.trainers.reporting import without_bars

Stage = Callable[[TrainSettings, Path, Progress], None]


def train(
    settings: TrainSettings, output: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """Score the experts, train the router, save the team; the same call continues what was interrupted.

    With a section ``cdpo`` the second stage follows: preference pairs are made of the team's own mistakes if the
    settings say so, scored, and learned.

    Args:
        output: gets ``settings.yaml``, ``scores/``, ``checkpoints/``, for a second stage ``sft/`` (the team of the
            first), ``pairs.jsonl`` and ``pair_scores/``, then ``router/``, ``README.md``, ``team.json``. The fine-tuned
            baseline ends in ``model/`` instead.
        overwrite: start anew, removing what a run has left in ``output`` (never anything else).

    Returns:
        ``output``, now a team folder.

    Raises:
        OutputExistsError: ``output`` holds something else, or a run of other settings.
        CheckpointError, VocabularyError, SettingsError, DataError: before anything expensive, wherever possible.
        KeyboardInterrupt: after Ctrl-C, with everything kept that is needed to continue.
    """
    return _run([_score, _sft, _cdpo], settings, output, "score" if overwrite else None, progress)


def score(
    settings: TrainSettings, output: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """The first part of `train`. Returns the folder of the scores; arguments and errors as there."""
    return _run([_score], settings, output, "score" if overwrite else None, progress) / SCORES_FOLDER


def sft(
    settings: TrainSettings, output: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """Stage 1 of `train`, on the scores in ``output``; ``overwrite`` trains anew but keeps those scores.

    Returns:
        The team folder: ``output`` itself, or ``output/sft`` if a second stage is to follow.
    """
    folder = _run([_sft], settings, output, "sft" if overwrite else None, progress)
    return folder if settings.cdpo is None else folder / SFT_FOLDER


def cdpo(
    settings: TrainSettings, output: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """Stage 2 of `train`, on the router of stage 1 in ``output``; ``overwrite`` keeps that and the pairs made of it."""
    if settings.cdpo is None:
        raise SettingsError("there is no section cdpo, so there is no second stage; add one, with preference pairs")
    return _run([_cdpo], settings, output, "cdpo" if overwrite else None, progress)


def _run(
    parts: list[Stage], settings: TrainSettings, output: str | Path, clear_since: str | None, progress: Progress | None
) -> Path:
    output, processes = Path(output), join_processes(settings.device)
    told = progress if progress is not None and processes.is_main_process else Silent()
    if processes.is_main_process:
        if clear_since is not None:
            clear_run(output, since=clear_since)
        open_run(output, settings)
    processes.wait_for_everyone()
    if is_finished(output) and parts != [_score]:
        told.finish(f"{output} is already finished; nothing to do")
        return output
    with without_bars():
        for part in parts:
            part(settings, output, told)
    return output


def _score(settings: TrainSettings, output: Path, progress: Progress) -> None:
    stages.score_examples(settings, output, progress)


def _sft(settings: TrainSettings, output: Path, progress: Progress) -> None:
    if settings.cdpo is not None and stage_one_is_finished(output, settings):
        progress.finish(f"stage 1: done before, in {output / SFT_FOLDER}")
    else:
        stages.train_sft(settings, output, progress)


def _cdpo(settings: TrainSettings, output: Path, progress: Progress) -> None:
    if settings.cdpo is None:
        return
    if not stage_one_is_finished(output, settings):
        raise DataError(f"{output} holds no router of stage 1; train it with fusionroute sft")
    if settings.pairs is not None and not (output / PAIRS_FILE).is_file():
        stages.make_team_pairs(settings, output, progress)
    stages.score_pairs(settings, output, progress)
    stages.train_cdpo(settings, output, progress)
