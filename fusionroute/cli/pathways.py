"""``fusionroute roma record`` and ``report``: how a model routes questions, on disk and as a page."""

from pathlib import Path
from typing import Annotated

import typer

from fusionroute.cli import options
from fusionroute.cli.console import quiet, stdout
from fusionroute.cli.roma import BatchSize, Limit, Model, Output, Prompt, Questions, layers_of, load, say


def record(
    model: Model,
    questions: Questions,
    output: Output,
    layers: Annotated[str, typer.Option("--layers", help="How many of the last MoE layers, or all.")] = "5",
    embedder: Annotated[
        str, typer.Option("--embedder", help="self, or a sentence-transformers folder or hub id.")
    ] = "self",
    prompt: Prompt = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    device: options.Device = None,
    dtype: options.Dtype = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Keep routing, right or wrong, and embedding of every question; run again, it continues where it stopped."""
    quiet()
    from fusionroute.moe.embedders import embedder as find_embedder
    from fusionroute.moe.pathways import record as write
    from fusionroute.terminal import RichProgress

    asked, prompt_format, _, gates = load(model, questions, prompt, limit, device, dtype, layers=layers_of(layers))
    frozen = find_embedder(embedder, gates, prompt_format=prompt_format, batch_size=batch_size, device=device)
    with RichProgress(stdout()) as progress:
        write(
            gates,
            asked,
            output,
            prompt_format=prompt_format,
            embedder=frozen,
            batch_size=batch_size,
            overwrite=overwrite,
            progress=progress,
        )
    say(stdout(), f"{output} is ready: pathways of {len(asked):,} questions")


def report(
    before: Annotated[Path, typer.Argument(help="Pathways of the base, by `roma record`.", show_default=False)],
    after: Annotated[
        Path, typer.Argument(help="The same questions' after tuning, by `roma record`.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT.html", help="Page to write.", show_default=False)],
    title: Annotated[str, typer.Option("--title", help="Headline of the page.")] = "Routing before and after",
    overwrite: options.Overwrite = False,
) -> None:
    """One page: pathways and questions side by side, how well they align, which expert is used where."""
    quiet()
    from fusionroute.evaluation.report.routing import write_routing_report
    from fusionroute.moe.pathways import load_pathways

    written = write_routing_report(
        load_pathways(before), load_pathways(after), output, title=title, overwrite=overwrite
    )
    say(stdout(), f"{written} is ready; open it in a browser")
