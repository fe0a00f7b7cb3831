"""``fusionroute merge``: several fine-tunes of one base as one checkpoint, the baseline that needs no routing."""

from typing import TYPE_CHECKING, Annotated

import typer

from fusionroute.cli import options
from fusionroute.cli.console import conclude, quiet, stdout
from fusionroute.errors import SettingsError

if TYPE_CHECKING:
    from fusionroute.ops.merging import MergeSettings

HOW = "How they are merged"


def merge(
    method: Annotated[
        str, typer.Option("--method", help="task_arithmetic, ties or dare.", show_default=False, rich_help_panel=HOW)
    ],
    base: Annotated[
        str,
        typer.Option("--base", help="Folder or hub id of what the experts were fine-tuned from.", show_default=False),
    ],
    expert: Annotated[
        list[str],
        typer.Option("--expert", metavar="NAME=MODEL", help="Folder or hub id; repeatable.", show_default=False),
    ],
    output: options.OutputFolder,
    scale: Annotated[
        float, typer.Option("--scale", help="λ, how much of the merged change is added.", rich_help_panel=HOW)
    ] = 1.0,
    density: Annotated[
        float | None,
        typer.Option("--density", help="ties: the share of each change that is kept; else 0.2.", rich_help_panel=HOW),
    ] = None,
    drop_rate: Annotated[
        float | None,
        typer.Option(
            "--drop-rate", help="dare: the share of each change that is dropped; else 0.9.", rich_help_panel=HOW
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="dare: of what is dropped; else 0.", rich_help_panel=HOW)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Of the result: float32, float16 or bfloat16; else the base's."),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Merge fine-tunes of one base into one normal checkpoint."""
    settings = _merge_settings(
        {"method": method, "scale": scale, "density": density, "drop_rate": drop_rate, "seed": seed}
    )
    experts = _experts(expert)
    from fusionroute.models.merging import merge_into_folder
    from fusionroute.terminal.progress import RichProgress

    console = stdout()
    with RichProgress(console) as progress:

        def on_tensor(name: str, done: int, total: int) -> None:
            if done == 0:
                progress.start(f"merging {len(experts)} experts", total)
            else:
                progress.advance(1, name)

        merge_into_folder(base, experts, settings, output, dtype=dtype, overwrite=overwrite, on_tensor=on_tensor)
        progress.finish(f"merged {', '.join(experts)} by {settings.method}")
    conclude(console, output, "load it like any checkpoint, or name it as `model` of method single in COMPARE.yaml")


def _experts(given: list[str]) -> dict[str, str]:
    experts: dict[str, str] = {}
    for each in given:
        name, _, model = each.partition("=")
        if not name or not model:
            raise SettingsError(f"--expert is NAME=MODEL, such as math=owner/math-model; got {each!r}")
        if name in experts:
            raise SettingsError(f"--expert {name!r} stands twice; give each a name of its own")
        experts[name] = model
    return experts


def _merge_settings(values: dict[str, object]) -> "MergeSettings":
    quiet()
    from fusionroute.ops.merging import MergeSettings

    try:
        return MergeSettings.parse(values)
    except SettingsError as error:
        message = str(error)
        for name in ("method", "density", "drop_rate", "seed", "scale"):
            if message.startswith((f"{name}:", f"{name} ")):
                message = f"--{name.replace('_', '-')}{message.removeprefix(name)}"  # as it is called here
        raise SettingsError(message) from None
