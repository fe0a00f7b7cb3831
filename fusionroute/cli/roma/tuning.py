"""``fusionroute roma train``, ``sweep`` and ``apply``: routers of a mixture of experts, tuned."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fusionroute.cli import options
from fusionroute.cli.console import conclude, quiet, say, stdout
from fusionroute.cli.overrides import with_overrides
from fusionroute.cli.roma.options import Overrides, SettingsYaml
from fusionroute.config import read_yaml
from fusionroute.terminal.tables import percent

if TYPE_CHECKING:
    from rich.table import Table

    from fusionroute.moe.roma.settings import RoMASettings
    from fusionroute.moe.roma.sweep import Sweep


def train(
    settings: SettingsYaml,
    output: options.OutputFolder,
    delta: Annotated[
        bool, typer.Option("--delta", help="Save the routers alone, for `roma apply`; else a whole checkpoint.")
    ] = False,
    overwrite: options.Overwrite = False,
    override: Overrides = None,
) -> None:
    """Record pathways and tune the routers on them; run again, it continues where it stopped."""
    parsed = _settings(settings, override, delta)
    from fusionroute.moe.roma.roma import train_roma
    from fusionroute.terminal.progress import RichProgress

    console = stdout()
    with RichProgress(console) as progress:
        written = train_roma(parsed, output, overwrite=overwrite, progress=progress)
    conclude(console, written, _after(parsed, written))


def sweep(
    settings: SettingsYaml,
    output: options.OutputFolder,
    delta: Annotated[bool, typer.Option("--delta", help="Save the chosen routers alone.")] = False,
    overwrite: options.Overwrite = False,
    override: Overrides = None,
    as_json: options.AsJson = False,
) -> None:
    """Tune with several λ, 0 always among them; choose on data.dev and report every one."""
    parsed = _settings(settings, override, delta)
    from fusionroute.moe.roma.folder import SWEEP_FILE
    from fusionroute.moe.roma.roma import result_of
    from fusionroute.moe.roma.sweep import sweep as run
    from fusionroute.terminal.progress import RichProgress

    console = stdout()
    with RichProgress(Console(stderr=True, highlight=False) if as_json else console) as progress:
        found = run(parsed, output, overwrite=overwrite, progress=progress)
    if as_json:
        print(json.dumps({"prompt": parsed.prompt, **found.as_json()}, indent=2, ensure_ascii=False))
        return
    console.print(_sweep_table(found))
    say(console, f"λ = {found.chosen:g} was chosen; {output / SWEEP_FILE} has every point")
    written = result_of(output, parsed)
    conclude(console, written, _after(parsed, written))


def apply(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Folder or hub id of what was tuned.", show_default=False)
    ],
    delta: Annotated[
        Path, typer.Argument(metavar="DELTA", help="File that `roma train` wrote, or its folder.", show_default=False)
    ],
    output: options.OutputFolder,
    overwrite: options.Overwrite = False,
) -> None:
    """Put tuned routers into their base: the whole checkpoint, as `roma train` writes it without --delta."""
    quiet()
    from fusionroute.moe.roma.router_delta import apply_delta

    written = apply_delta(base, delta, output, overwrite=overwrite)
    conclude(stdout(), written, _asking(str(written), base))


def _after(settings: "RoMASettings", written: Path) -> str:
    base = settings.model.model
    if settings.save == "delta":
        return f"fusionroute roma apply {base} {written} --output …"
    return _asking(str(written), base)


def _asking(model: str, base: str) -> str:
    return f"fusionroute roma evaluate {model} QUESTIONS.jsonl --reference-base {base}"


def _settings(path: Path, override: list[str] | None, delta: bool) -> "RoMASettings":
    values = with_overrides(read_yaml(path), override or [])
    quiet()
    from fusionroute.moe.roma.settings import RoMASettings

    return RoMASettings.parse({**values, **({"save": "delta"} if delta else {})}, source=str(path))


def _sweep_table(found: "Sweep") -> "Table":
    from rich import box
    from rich.table import Table

    from fusionroute.evaluation.statistics import wilson

    caption = f"n = {found.base.n} development questions, 95 % intervals; λ = 0 is plain router tuning"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    for column in ("λ", "right answers in %", "mean of tasks", "loss"):
        table.add_column(column, justify="left" if column == "λ" else "right")
    for point in (found.base, *found.points):
        name = "untouched" if point.weight is None else f"{point.weight:g}"
        style = "bold" if point.weight == found.chosen else None
        right = percent(wilson(point.correct, point.n))
        table.add_row(name, right, f"{100 * float(point.mean):.1f}", f"{point.loss:.4f}", style=style)
    return table
