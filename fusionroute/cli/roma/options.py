"""Options that several of the commands share."""

from pathlib import Path
from typing import Annotated

import typer

from fusionroute.cli.options import MACHINE

SettingsYaml = Annotated[
    Path, typer.Argument(metavar="SETTINGS.yaml", help="Model, questions and options.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set an option of SETTINGS.yaml, such as optimiser.learning_rate=1e-4; repeatable.",
    ),
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder or hub id of a mixture-of-experts model.", show_default=False)
]
Questions = Annotated[
    Path,
    typer.Argument(
        metavar="QUESTIONS.jsonl",
        help="Objects with `prompt` or `messages`, `answer`, and `options` and `task` if there are any.",
        show_default=False,
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="Prompt format: chat_template, alpaca, or text (as it is). Left out: that of the run of `roma train` or "
        "`roma sweep` in which MODEL lies; for other models text.",
    ),
]
Layers = Annotated[
    str, typer.Option("--layers", help="How many of the last MoE layers, a list of places such as 0,3,5, or all.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first questions.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Questions in a pass.", rich_help_panel=MACHINE)]
