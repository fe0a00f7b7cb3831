"""``fusionroute train``, ``score`` and ``sft``: from a YAML file to a team."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fusionroute.cli import options
from fusionroute.cli.console import quiet, stdout
from fusionroute.config import read_yaml
from fusionroute.errors import SettingsError

if TYPE_CHECKING:
    from fusionroute.training.settings import TrainSettings


def train(
    team: options.TeamYaml,
    output: options.OutputFolder,
    overwrite: options.Overwrite = False,
    override: options.Overrides = None,
) -> None:
    """Score the experts and train the router; run again, it continues where it stopped."""
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


def _train_stage(stage: str, team: Path, output: Path, overwrite: bool, override: list[str] | None) -> None:
    settings = _train_settings(team, override or [])
    from fusionroute.terminal import RichProgress
    from fusionroute.training import run

    console = stdout()
    with RichProgress(console) as progress:
        written = getattr(run, stage)(settings, output, overwrite=overwrite, progress=progress)
    console.print(f"{written} is ready", soft_wrap=True)
    if stage != "score":
        console.print(f'next: fusionroute generate {output} "…"', soft_wrap=True)


def _train_settings(path: Path, overrides: list[str]) -> "TrainSettings":
    values = read_yaml(path)
    for override in overrides:
        _override(values, override)
    quiet()
    from fusionroute.training.settings import TrainSettings

    return TrainSettings.parse(values, source=str(path))


def _override(values: dict[str, Any], override: str) -> None:
    """``sft.epochs=2`` into ``values["sft"]["epochs"]``; whether such a key exists is for the settings to say."""
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not all([*parents, last]):
        raise SettingsError(f"--set takes KEY=VALUE such as sft.learning_rate=1e-4; got {override!r}")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise SettingsError(f"--set {override}: {parent!r} holds no options of its own")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsError(f"--set {override}: {text!r} is not valid YAML; put it in quotes") from None
