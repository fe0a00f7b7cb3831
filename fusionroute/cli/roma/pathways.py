"""``fusionroute roma record`` and ``report``: how a model routes questions, on disk and as a page."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fusionroute.cli import options
from fusionroute.cli.console import conclude, quiet, say, stdout
from fusionroute.cli.roma.options import BatchSize, Layers, Limit, Model, Prompt, Questions
from fusionroute.cli.roma.question_format import choose_format
from fusionroute.cli.roma.questions import layers_of, load, say_format
from fusionroute.errors import DataError

FORM = 'write {"RoMA": {"arc": 0.58, "average": {"value": 0.6, "low": 0.57, "high": 0.63}}}'


def record(
    model: Model,
    questions: Questions,
    output: options.OutputFolder,
    layers: Layers = "5",
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
    from fusionroute.moe.pathways.pathways import record as write
    from fusionroute.terminal.progress import RichProgress

    chosen = choose_format(model, prompt)
    asked, prompt_format, _, gates = load(model, questions, chosen, limit, device, dtype, layers=layers_of(layers))
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
    say_format(stdout(), chosen)
    say(stdout(), f"pathways of {len(asked):,} questions")
    conclude(stdout(), output, "fusionroute roma report BEFORE AFTER --output …, once both models are recorded")


def report(
    before: Annotated[Path, typer.Argument(help="Pathways of the base, by `roma record`.", show_default=False)],
    after: Annotated[
        Path, typer.Argument(help="The same questions' after tuning, by `roma record`.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", help="Page to write, *.html.", show_default=False)],
    title: Annotated[str, typer.Option("--title", help="Headline of the page.")] = "Routing before and after",
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FILE.json",
            help="Other methods for the page's table: an object of methods, each an object of columns (tasks, average) "
            "to a share of right answers or {value, low, high}. With base and oracle: how much of the gap is closed.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """One page: pathways and questions side by side, how well they align, which expert is used where."""
    quiet()
    from fusionroute.evaluation.report.routing import write_routing_report
    from fusionroute.moe.pathways.pathways import load_pathways

    others = None if results is None else _results(results)
    written = write_routing_report(
        load_pathways(before), load_pathways(after), output, title=title, results=others, overwrite=overwrite
    )
    conclude(stdout(), written, "open it in a browser")


def _results(path: Path) -> dict[str, dict[str, Any]]:
    """Methods to columns to shares. Raises `DataError`, naming what is of another form."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"no results can be read from {path} ({error.strerror}); give a JSON file") from None
    except ValueError as error:  # of UTF-8 too
        raise DataError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(found, dict) or not found:
        raise DataError(f"{path} holds no methods; {FORM}")
    for method, columns in found.items():
        if not isinstance(columns, dict):
            raise DataError(f"{path}: {method!r} has no columns but {columns!r}; {FORM}")
        for column, value in columns.items():
            share = value.get("value") if isinstance(value, dict) else value
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise DataError(f"{path}: {method!r}, {column!r} is {value!r}, no share of 0 to 1; {FORM}")
    return found
