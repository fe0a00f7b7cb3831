"""``fusionroute pairs``: preference pairs of a team's own mistakes, for the second stage of its training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionroute.cli import options
from fusionroute.cli.console import conclude, quiet, stdout
from fusionroute.cli.loading import load_team
from fusionroute.errors import SettingsError

if TYPE_CHECKING:
    from fusionroute.training.settings import PairSettings

JUDGE = "Who says which answer is better (one of these)"


def pairs(
    team: options.TeamFolder,
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS",
            help="*.jsonl, *.parquet or hub id: `prompt` or `messages`; a `completion` is the reference answer.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", help="File to write, JSON lines.", show_default=False)],
    checker: Annotated[
        str | None,
        typer.Option("--checker", help="package.module:function of (rows, answers) to scores.", rich_help_panel=JUDGE),
    ] = None,
    reward_model: Annotated[
        str | None,
        typer.Option("--reward-model", help="Folder or hub id of a classifier with one output.", rich_help_panel=JUDGE),
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option("--judge-url", help="OpenAI-compatible, such as http://host:8000/v1.", rich_help_panel=JUDGE),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", help="With --judge-url: the model there.", rich_help_panel=JUDGE)
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", help="How much better the preferred answer must be.", rich_help_panel=JUDGE)
    ] = 0.0,
    samples: Annotated[
        int,
        typer.Option("--samples", help="Answers to draw beside the greedy one.", rich_help_panel=options.GENERATION),
    ] = 4,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Of the drawn answers.", rich_help_panel=options.GENERATION)
    ] = 1.0,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Of the drawn answers.", rich_help_panel=options.GENERATION)
    ] = None,
    max_new_tokens: options.MaxNewTokens = 256,
    seed: Annotated[int, typer.Option("--seed", help="The same draws again.", rich_help_panel=options.GENERATION)] = 0,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first prompts.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    cache_limit: options.CacheLimit = None,
    max_batch: Annotated[
        int, typer.Option("--max-batch", help="Answers written at once.", rich_help_panel=options.MACHINE)
    ] = 64,
) -> None:
    """Find what a team gets wrong and something better; run again, it continues where it stopped."""
    settings = _pair_settings(
        prompts=prompts, checker=checker, reward_model=reward_model, judge_url=judge_url, judge_model=judge_model,
        margin=margin, samples=samples, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed,
        limit=limit,
    )  # fmt: skip
    from fusionroute.terminal.progress import RichProgress
    from fusionroute.training.pairs.judges import make_judge
    from fusionroute.training.pairs.make import make_pairs, refuse_existing_pairs
    from fusionroute.training.pairs.writer import team_writer

    refuse_existing_pairs(output, overwrite=overwrite)
    judge = make_judge(settings, device=device)  # what may be misspelt comes before what takes long
    writer = team_writer(load_team(team, device, dtype), max_batch=max_batch, cache_limit=cache_limit)
    console = stdout()
    with RichProgress(console) as progress:
        make_pairs(writer, settings, output, judge=judge, overwrite=overwrite, progress=progress)
    conclude(console, output, f"in the team file, data: {{pairs: {output}}} and a section cdpo")


def _pair_settings(**values: Any) -> "PairSettings":
    """Checked before any model is loaded, since that may take minutes."""
    quiet()
    from fusionroute.training.settings import PairSettings

    try:
        return PairSettings.parse(values)
    except SettingsError as error:
        message = str(error)
        for name in ("checker", "reward_model", "judge_url", "judge_model"):
            message = message.replace(name, f"--{name.replace('_', '-')}")  # as they are called here
        raise SettingsError(message) from None
