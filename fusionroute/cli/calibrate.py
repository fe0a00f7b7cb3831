"""``fusionroute calibrate``: which model of an ensemble should draft, by a few prompts."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console

from fusionroute.cli import options
from fusionroute.cli.console import quiet, stdout
from fusionroute.cli.overrides import with_overrides
from fusionroute.errors import OutputExistsError

if TYPE_CHECKING:
    from rich.table import Table

    from fusionroute.calibration import Calibration

DRAFTER_LINE = re.compile(r"^drafter\s*:.*$", re.MULTILINE)


def calibrate(
    ensemble: Annotated[
        Path, typer.Argument(metavar="ENSEMBLE.yaml", help="Its drafter may be missing.", show_default=False)
    ],
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS.jsonl",
            help="Objects with `prompt` or `messages`, and a good `answer` where you have one.",
            show_default=False,
        ),
    ],
    limit: Annotated[int, typer.Option("--limit", min=1, help="Only the first prompts.")] = 32,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the ensemble file with that drafter here.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --output names.")] = False,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens",
            min=1,
            help="Without answers in the file: most tokens of those that the models write.",
            rich_help_panel=options.GENERATION,
        ),
    ] = 64,
    override: options.EnsembleOverrides = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    cache_limit: options.CacheLimit = None,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="Answers written at once.", rich_help_panel=options.MACHINE)
    ] = 64,
) -> None:
    """Choose the drafter of an ensemble by prompts of your own, best with good answers to them."""
    if output is not None and output.exists() and not overwrite:
        raise OutputExistsError(f"{output} exists; choose another name, or add --overwrite")
    quiet()
    from fusionroute.calibration import choose_drafter, read_questions
    from fusionroute.models.ensemble import EnsembleSettings, load_members, load_voices
    from fusionroute.terminal import RichProgress

    settings = EnsembleSettings.read(ensemble, with_overrides({}, override or ()))
    questions = read_questions(prompts, limit)
    voices = load_voices(settings.models, settings.prompt)
    members = load_members(settings.models, voices, dtype=dtype or settings.dtype, device=device or settings.device)
    console = stdout()
    with RichProgress(console) as progress:
        found = choose_drafter(
            members, questions, max_new_tokens=max_new_tokens, max_batch=max_batch, cache_limit=cache_limit,
            progress=progress,
        )  # fmt: skip
    console.print(_table(found))
    _conclude(console, found)
    if output is not None:
        write_drafter(ensemble, output, found.best)
        console.print(f"{output} has drafter: {found.best}", soft_wrap=True, markup=False)


def _table(found: "Calibration") -> "Table":
    from rich import box
    from rich.table import Table

    what = "the reference answers" if found.by_reference else "the model's own answers, judged by all models"
    caption = f"bits per byte of {what}; less is better; 95 % intervals over n = {found.n} prompts"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    table.add_column("")
    for column in ("bits per byte", "95 %", "behind the best", "95 %"):
        table.add_column(column, justify="right")
    for name in sorted(found.bits, key=lambda name: found.mean(name).value):
        mean, behind = found.mean(name), found.behind(name)
        row = [f"{mean.value:.3f}", f"{mean.low:.3f} to {mean.high:.3f}"]
        is_best = name == found.best
        row += ["", ""] if is_best else [f"{behind.value:+.3f}", f"{behind.low:+.3f} to {behind.high:+.3f}"]
        table.add_row(name, *row, style="bold" if is_best else None)
    return table


def _conclude(console: Console, found: "Calibration") -> None:
    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    say(f"drafter: {found.best}")
    close = [name for name in found.bits if name != found.best and found.is_within_noise(name)]
    if close:
        say(f"within noise: on other prompts {' or '.join(close)} might have come first; more prompts tell them apart")
    if found.left_out:
        say(f"{found.left_out} prompts were left out, to which some model wrote nothing")
    if far := found.far_behind():
        shares = ", ".join(f"{name} {share:.0%}" for name, share in far.items())
        say(
            f"warning: far behind {found.best}, in bits per byte: {shares}; a member that is much weaker than the best "
            "can make answers worse than the best alone writes"
        )


def write_drafter(source: Path, target: Path, drafter: str) -> None:
    """Write an ensemble file with that drafter; comments and order stay as they are where YAML's block form is used."""
    from fusionroute.config import read_yaml
    from fusionroute.output import write_text

    text = source.read_text(encoding="utf-8")
    values = read_yaml(source) | {"drafter": drafter}
    line = yaml.safe_dump({"drafter": drafter}, allow_unicode=True)
    changed = DRAFTER_LINE.sub(lambda _: line.strip(), text, count=1)
    if changed == text and "drafter" not in read_yaml(source):
        changed = text.rstrip("\n") + "\n" + line
    if not _says(changed, values):
        changed = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_text(target, changed)


def _says(text: str, values: dict[str, object]) -> bool:
    try:
        return bool(yaml.safe_load(text) == values)
    except yaml.YAMLError:
        return False
