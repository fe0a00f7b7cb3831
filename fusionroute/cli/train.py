"""``fusionroute train`` and its stages ``score``, ``sft`` and ``cdpo``: from a YAML file to a team."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fusionroute.cli import options
from fusionroute.cli.console import conclude, quiet, say, stdout
from fusionroute.cli.overrides import with_overrides
from fusionroute.config import read_yaml
from fusionroute.errors import SettingsError

if TYPE_CHECKING:
    from fusionroute.training.settings import TrainSettings


DRY_RUN = "Dry run"


def train(
    team: options.TeamYaml,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder to write; needed without --dry-run.", show_default=False)
    ] = None,
    overwrite: options.Overwrite = False,
    override: options.Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check models and data, say what it would take, write nothing.",
            rich_help_panel=DRY_RUN,
        ),
    ] = False,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Measure no times on this device.", rich_help_panel=DRY_RUN)
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", min=1, help="That will train together; else those of this launch.", rich_help_panel=DRY_RUN
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON.", rich_help_panel=DRY_RUN)] = False,
) -> None:
    """Score the experts and train the router; run again, it continues where it stopped."""
    if dry_run:
        _plan(team, override, probe=not no_probe, processes=processes, as_json=as_json)
        return
    idle = {"--no-probe": no_probe, "--processes": processes is not None, "--json": as_json}
    if given := [name for name, is_given in idle.items() if is_given]:
        raise SettingsError(f"{given[0]} says how to make a plan; add --dry-run, or leave it out")
    if output is None:
        raise SettingsError("--output is missing: give the folder to write, or --dry-run to write nothing")
    _train_stage("train", team, output, overwrite, override)


def score(
    team: options.TeamYaml,
    output: options.OutputFolder,
    overwrite: options.Overwrite = False,
    override: options.Overrides = None,
) -> None:
    """Only the first part of `train`: what each expert says of the data."""
    _train_stage("score", team, output, overwrite, override)


def sft(
    team: options.TeamYaml,
    output: options.OutputFolder,
    overwrite: options.Overwrite = False,
    override: options.Overrides = None,
) -> None:
    """Only the second part of `train`: the router, from scores that are there."""
    _train_stage("sft", team, output, overwrite, override)


def cdpo(
    team: options.TeamYaml,
    output: options.OutputFolder,
    overwrite: options.Overwrite = False,
    override: options.Overrides = None,
) -> None:
    """Only the last part of `train`: preferences, on the router of `sft` that is there."""
    _train_stage("cdpo", team, output, overwrite, override)


def _plan(team: Path, override: list[str] | None, *, probe: bool, processes: int | None, as_json: bool) -> None:
    settings = _train_settings(team, override or [])
    if not _is_first():
        return
    from fusionroute.cli.dry_run import plan_as_json, print_plan
    from fusionroute.terminal.progress import RichProgress
    from fusionroute.training.planning.plan import plan

    with RichProgress(Console(stderr=True, highlight=False)) as progress:
        found = plan(settings, probe=probe, processes=processes, progress=progress)
    if as_json:
        print(plan_as_json(found))
    else:
        print_plan(stdout(), found)
        say(stdout(), f"next: fusionroute train {team} --output …")


def _train_stage(stage: str, team: Path, output: Path, overwrite: bool, override: list[str] | None) -> None:
    settings = _train_settings(team, override or [])
    from fusionroute.terminal.progress import RichProgress
    from fusionroute.training import run

    console = stdout()
    with RichProgress(console) as progress:
        written = getattr(run, stage)(settings, output, overwrite=overwrite, progress=progress)
    if not _is_first():
        return
    conclude(console, written, after(stage, settings, team, output))


def after(stage: str, settings: "TrainSettings", team: Path, output: Path) -> str:
    """What to do next."""
    from fusionroute.training.run_folder import MODEL_FOLDER

    if stage == "score":
        return f"fusionroute sft {team} --output {output}"
    if settings.makes_a_team:
        return f'fusionroute generate {output} "…"'
    return f"load {output / MODEL_FOLDER} like any checkpoint, or name it as `model` of method single in COMPARE.yaml"


def _is_first() -> bool:
    """Of the processes of a launch one alone prints."""
    return os.environ.get("RANK", "0") == "0"


def _train_settings(path: Path, overrides: list[str]) -> "TrainSettings":
    values = with_overrides(read_yaml(path), overrides)
    quiet()
    from fusionroute.training.settings import TrainSettings

    return TrainSettings.parse(values, source=str(path))
