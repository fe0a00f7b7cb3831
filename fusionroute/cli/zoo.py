"""``fusionroute demo`` and ``fusionroute zoo``: the bundled tiny models and tasks."""

import json
import shutil
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from fusionroute.cli import options
from fusionroute.cli.console import conclude, quiet, stdout
from fusionroute.errors import SettingsError

INDENT = (0, 0, 0, 2)
MOE = "moe_"  # before the tasks of the mixtures of experts, one of which is called as a task of the team


def demo(
    output: Annotated[Path, typer.Option("--output", help="Folder to write.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", help="Of the data and the router.")] = 0,
    per_task: Annotated[int, typer.Option("--per-task", min=1, help="Training examples of each task.")] = 400,
    test_count: Annotated[int, typer.Option("--test-count", min=1, help="Test examples of each task.")] = 100,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train again although a demo is there.")] = False,
) -> None:
    """Train a router over the bundled tiny experts, compare, show who writes what."""
    quiet()
    from fusionroute.zoo.demo import run_demo

    run_demo(output, seed=seed, per_task=per_task, test_count=test_count, console=stdout(), overwrite=overwrite)


def listing() -> None:
    """The models and their sizes, the tasks with an example of each."""
    quiet()
    from fusionroute.zoo.build import MODELS, WEIGHTS, weights_folder
    from fusionroute.zoo.families import FAMILIES
    from fusionroute.zoo.moe import MOE_MODELS
    from fusionroute.zoo.tasks import FAMILY_TASKS, TASKS, examples

    console = stdout()
    console.print("[bold]models[/bold]")
    notes = dict.fromkeys(FAMILIES, "  own tokenizer") | dict.fromkeys(MOE_MODELS, "  mixture of experts")
    for name in (*MODELS, *FAMILIES, *MOE_MODELS):
        weights = weights_folder(name) / "model.safetensors"
        size = weights.stat().st_size / 2**20
        note = notes.get(name, "")
        console.print(f"  {name:9}{_parameters(weights):>10,} parameters {size:5.1f} MiB{note}", soft_wrap=True)
    console.print(f"  in {WEIGHTS}", style="dim", soft_wrap=True)
    for name, task in (TASKS | FAMILY_TASKS).items():
        example = examples(name, "train", 1)[0]
        whose = "models of own tokenizers" if name in FAMILY_TASKS else ", ".join(task.domains) or "no expert"
        console.print(f"\n[bold]{name}[/bold]  {escape(task.description)} [dim]({whose})[/dim]")
        _show(console, example.prompt, example.answer)
    _list_questions(console)


def _list_questions(console: Any) -> None:
    """The tasks of the mixtures of experts; they are asked as questions, with or without options."""
    from fusionroute.zoo.moe.tasks import MOE_TASKS, questions

    for name, task in MOE_TASKS.items():
        (question,) = questions(name, "train", 1)
        kind = "held out, " if task.held_out else ""
        chosen = f"one of {', '.join(question.options)}" if question.options else "free answer"
        console.print(
            f"\n[bold]{MOE}{name}[/bold]  {escape(chosen)} [dim]({kind}mixtures of experts: {task.skill})[/dim]",
            soft_wrap=True,
        )
        _show(console, question.text, question.answer)


def _show(console: Any, prompt: str, answer: str) -> None:
    console.print(Padding(Text(prompt, "dim"), INDENT, expand=False))
    console.print(Padding(Text(answer), INDENT, expand=False))


def examples(
    names: Annotated[
        list[str], typer.Argument(metavar="TASK...", help="Of `fusionroute zoo list`.", show_default=False)
    ],
    split: Annotated[
        str, typer.Option("--split", help="experts, train, preference or test; of the mixtures' also router and dev.")
    ] = "train",
    count: Annotated[int, typer.Option("--count", min=1, help="Of each task.")] = 10,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Examples of tasks, one JSON object a line, as other commands read them."""
    try:
        rows = [row for name in names for row in _rows(name, split, count, seed)]
    except ValueError as error:
        raise SettingsError(str(error)) from None
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


def _rows(name: str, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    from fusionroute.zoo import tasks
    from fusionroute.zoo.judge import row
    from fusionroute.zoo.moe.tasks import MOE_TASKS, questions

    if name.startswith(MOE) and name.removeprefix(MOE) in MOE_TASKS:
        return [question.as_row() for question in questions(name.removeprefix(MOE), split, count, seed)]
    return [row(example) for example in tasks.examples(name, split, count, seed)]


def take(
    output: options.OutputFolder,
    overwrite: options.Overwrite = False,
) -> None:
    """Copy the bundled models into a folder, to be named in files of yours like any others, with lm-eval's tasks."""
    quiet()
    from fusionroute.output import new_folder
    from fusionroute.zoo import lm_eval
    from fusionroute.zoo.build import MODELS, weights_folder
    from fusionroute.zoo.families import FAMILIES
    from fusionroute.zoo.moe import MOE_MODELS

    names = (*MODELS, *FAMILIES, *MOE_MODELS)
    with new_folder(output, overwrite=overwrite) as folder:
        for name in names:
            shutil.copytree(weights_folder(name), folder / name)
        shutil.copytree(lm_eval.__path__[0], folder / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    conclude(stdout(), output, f"name its {len(names)} models in files of yours, such as {output / names[1]}")


class Models(StrEnum):
    """Which of the bundled models to build."""

    TEAM = "team"
    FAMILIES = "families"
    MOE = "moe"


def build(
    output: options.OutputFolder,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    models: Annotated[
        Models,
        typer.Option("--models", help="team: base and experts; families: own tokenizers; moe: mixtures of experts."),
    ] = Models.TEAM,
) -> None:
    """Train the bundled models again from their recipe; an interrupted build continues."""
    quiet()
    from fusionroute.terminal.progress import RichProgress
    from fusionroute.zoo.build import build as build_team
    from fusionroute.zoo.families.build import build_families
    from fusionroute.zoo.moe.build import build_moe

    make = {Models.TEAM: build_team, Models.FAMILIES: build_families, Models.MOE: build_moe}[models]
    with RichProgress(stdout()) as progress:
        try:
            make(output, seed=seed, progress=_Stages(progress))
        except ValueError as error:
            raise SettingsError(str(error)) from None
    conclude(stdout(), output, "name its models in files of yours, by their folders")


class _Stages:
    """The zoo's ``progress(name, step, steps)`` on a bar per model."""

    def __init__(self, progress: Any):
        self.progress, self.name = progress, ""

    def __call__(self, name: str, step: int, steps: int) -> None:
        if name != self.name:
            self.name = name
            self.progress.start(f"teaching {name}", steps)
        self.progress.advance(1)
        if step == steps:
            self.progress.finish(f"{name} is taught")


def _parameters(weights: Path) -> int:
    from safetensors import safe_open

    with safe_open(weights, framework="numpy") as tensors:
        return sum(prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118 (not a dict)
