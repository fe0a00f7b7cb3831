"""``fusionroute export``: a team as one checkpoint for vLLM."""

from typing import Annotated

import typer

from fusionroute.cli import options
from fusionroute.cli.console import conclude, quiet, say, stdout


def export(
    team: options.TeamFolder,
    output: options.OutputFolder,
    no_complement: Annotated[
        bool, typer.Option("--no-complement", help="Route only: leave out the router's own say.")
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy weights that could be hard links to the originals.")
    ] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a team as one checkpoint for vLLM, which serves it beyond one machine."""
    quiet()
    from fusionroute.models.export.export import export_team
    from fusionroute.terminal.progress import RichProgress

    console = stdout()
    with RichProgress(console) as progress:
        done = export_team(
            team, output, complement=not no_complement, copy=copy, overwrite=overwrite, progress=progress
        )
        ways = {"linked": done.linked, "copied": done.copied, "merged": done.merged}
        how = [f"{what} {', '.join(names)}" for what, names in ways.items() if names]
        progress.finish("; ".join(how))
    for note in done.notes:
        say(console, f"note: {note}")
    conclude(console, output, done.serve(output))
