"""Options that several commands share, under the names that `GenerationSettings` and the library give them."""

from pathlib import Path
from typing import Annotated

import typer

GENERATION, MACHINE, OUTPUT = "How an answer is decoded", "Machine", "Output"

TeamFolder = Annotated[
    str, typer.Argument(metavar="TEAM", help="Folder or hub id of a trained team.", show_default=False)
]
TeamOrEnsemble = Annotated[
    str,
    typer.Argument(
        metavar="TEAM", help="Folder or hub id of a trained team, or an ensemble file (*.yaml).", show_default=False
    ),
]
EnsembleOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set an option of an ensemble file, such as draft_length=3; repeatable.",
        rich_help_panel=GENERATION,
    ),
]
TeamYaml = Annotated[
    Path, typer.Argument(metavar="TEAM.yaml", help="Experts, router, prompt and data.", show_default=False)
]
OutputFolder = Annotated[Path, typer.Option("--output", help="Folder to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output folder holds.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set an option of TEAM.yaml, such as sft.learning_rate=1e-4; repeatable."
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", help="Most tokens to write.", rich_help_panel=GENERATION)
]
DoSample = Annotated[
    bool, typer.Option("--do-sample", help="Draw tokens instead of taking the likeliest.", rich_help_panel=GENERATION)
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", help="With --do-sample.", rich_help_panel=GENERATION)
]
TopK = Annotated[
    int | None, typer.Option("--top-k", help="With --do-sample: only the k likeliest.", rich_help_panel=GENERATION)
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", help="With --do-sample: only the likeliest with this much probability.", rich_help_panel=GENERATION
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", help="With --do-sample: only those with this share of the likeliest's.", rich_help_panel=GENERATION
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", help="With --do-sample: the same draws again.", rich_help_panel=GENERATION)
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="End before this text; repeatable.", rich_help_panel=GENERATION)
]
NoComplement = Annotated[
    bool,
    typer.Option("--no-complement", help="Route only: leave out the router's own say.", rich_help_panel=GENERATION),
]
Speculation = Annotated[
    str | None,
    typer.Option(
        "--speculation",
        metavar="router|ngram|MODEL",
        help="Draft tokens and check several in one pass: the same answers, sooner. MODEL: folder or hub id.",
        rich_help_panel=GENERATION,
    ),
]
MaxDraft = Annotated[
    int | None,
    typer.Option("--max-draft", help="With --speculation: most tokens drafted, 1 to 64.", rich_help_panel=GENERATION),
]
Device = Annotated[
    str | None, typer.Option("--device", help="Such as cuda:0; else the best there is.", rich_help_panel=MACHINE)
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, float16 or bfloat16; else the checkpoint's.", rich_help_panel=MACHINE),
]
CacheLimit = Annotated[
    str | None,
    typer.Option(
        "--cache-limit", help="Key-value cache per device, such as 8GiB; else what is free.", rich_help_panel=MACHINE
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
