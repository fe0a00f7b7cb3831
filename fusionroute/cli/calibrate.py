"""``fusionroute calibrate``: which model of an ensemble should draft, by a few prompts."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console

from fusionroute.cli import options
from fusionroute.cli.console import conclude, quiet, say, stdout
from fusionroute.cli.overrides import as_changes
from fusionroute.errors import OutputExistsError

if TYPE_CHECKING:
    from rich.table import Table

    from fusionroute.calibration import Calibration
    from fusionroute.evaluation.statistics import Estimate

FOR_AN_INTERVAL = 6  # prompts: with fewer no difference is beyond noise, as 2 / 2**5 > 0.05


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
    """Choose the drafter of an ensemble by prompts of your own, with good answers to them; without, it is a guess."""
    if output is not None and output.exists() and not overwrite:
        raise OutputExistsError(f"{output} exists; choose another name, or add --overwrite")
    quiet()
    from fusionroute.calibration import check_judges, choose_drafter, read_questions
    from fusionroute.models.ensemble import EnsembleSettings, load_members, load_voices
    from fusionroute.terminal.progress import RichProgress

    changes = as_changes(override or ())
    settings = EnsembleSettings.read(ensemble, changes)
    questions = read_questions(prompts, limit)
    check_judges(settings.models, questions)
    voices = load_voices(settings.models, settings.prompt)
    members = load_members(settings.models, voices, dtype=dtype or settings.dtype, device=device or settings.device)
    console = stdout()
    with RichProgress(console) as progress:
        found = choose_drafter(
            members, questions, max_new_tokens=max_new_tokens, max_batch=max_batch, cache_limit=cache_limit,
            progress=progress,
        )  # fmt: skip
    console.print(_table(found))
    _judge(console, found)
    if output is not None:
        write_drafter(ensemble, output, found.best, changes)
        conclude(console, output, f'fusionroute generate {output} "…"')


def _table(found: "Calibration") -> "Table":
    from rich import box
    from rich.table import Table

    what = "the reference answers" if found.by_reference else "the model's own answers, as the other models judge them"
    intervals = "too few for intervals" if found.n < FOR_AN_INTERVAL else "95 % intervals over them"
    caption = f"bits per byte of {what}; less is better; n = {found.n} prompts, {intervals}"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    table.add_column("")
    for column in ("bits per byte", "95 %", "behind the best", "95 %"):
        table.add_column(column, justify="right")
    for name in sorted(found.bits, key=lambda name: found.mean(name).value):
        mean, behind = found.mean(name), found.behind(name)
        row = [f"{mean.value:.3f}", _interval(mean, "")]
        is_best = name == found.best
        # where few prompts differ, resampling is surer than the signs of the differences allow
        is_too_sure = found.is_within_noise(name) and not behind.low <= 0 <= behind.high
        row += ["", ""] if is_best else [f"{behind.value:+.3f}", "–" if is_too_sure else _interval(behind, "+")]
        table.add_row(name, *row, style="bold" if is_best else None)
    return table


def _interval(estimate: "Estimate", sign: str) -> str:
    return "–" if estimate.n < FOR_AN_INTERVAL else f"{estimate.low:{sign}.3f} to {estimate.high:{sign}.3f}"


def _judge(console: Console, found: "Calibration") -> None:
    say(console, f"drafter: {found.best}")
    if not found.by_reference:
        say(
            console,
            "this is a guess: the answers that the other models would rather have written need not be the good ones, "
            "and a model that alone knows your task is outvoted; give good answers to your prompts to be sure",
        )
    for name, count in found.looping.items():
        say(
            console,
            f"warning: {count} of {found.n} answers of {name} were cut off while they repeated themselves, which "
            "everybody foresees, so its bits say little; is prompt the format it knows?",
        )
    close = [name for name in found.bits if name != found.best and found.is_within_noise(name)]
    if close:
        say(
            console,
            f"within noise: on other prompts {' or '.join(close)} might have come first; more prompts tell them apart",
        )
    if found.left_out:
        say(console, f"{found.left_out} prompts were left out, to which some model wrote nothing")
    if far := {name: share for name, share in found.far_behind().items() if name not in close}:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in far.items())
        say(
            console,
            f"warning: far behind {found.best}, in bits per byte: {shares}; a member that is much weaker than the best "
            "can make answers worse than the best alone writes",
        )


def write_drafter(source: Path, target: Path, drafter: str, changes: Mapping[str, Any] | None = None) -> None:
    """Write an ensemble file with that drafter, and with what was changed of it.

    Comments and order stay as they are where YAML's block form is used and each changed option stands on one line.
    """
    from fusionroute.config import read_yaml
    from fusionroute.models.ensemble import with_changes
    from fusionroute.output import write_text

    old = read_yaml(source)
    values = with_changes(old, changes or {}) | {"drafter": drafter}
    text = source.read_text(encoding="utf-8")
    for key in [key for key, value in values.items() if key == "drafter" or key not in old or old[key] != value]:
        text = _with_line(text, key, values[key], is_new=key not in old)
    if not _says(text, values):
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_text(target, text)


def _with_line(text: str, key: str, value: Any, *, is_new: bool) -> str:
    style = None if isinstance(value, (dict, list)) else False  # None: all that a key holds on its line
    line = yaml.safe_dump({key: value}, allow_unicode=True, default_flow_style=style, width=float("inf"))
    if is_new:
        return text.rstrip("\n") + "\n" + line
    return re.sub(rf"^{re.escape(key)}\s*:.*$", lambda _: line.strip(), text, count=1, flags=re.MULTILINE)


def _says(text: str, values: dict[str, object]) -> bool:
    try:
        return bool(yaml.safe_load(text) == values)
    except yaml.YAMLError:
        return False
