"""``fusionroute evaluate``: every method on every task, a table, and a page to read and to send."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionroute.cli import options
from fusionroute.cli.console import conclude, quiet, stdout
from fusionroute.cli.failing import FAILED, complain
from fusionroute.cli.overrides import with_overrides
from fusionroute.config import read_yaml
from fusionroute.errors import SettingsError

if TYPE_CHECKING:
    from rich.table import Table

    from fusionroute.evaluation.compare.settings import CompareSettings


def evaluate(
    compare: Annotated[
        Path, typer.Argument(metavar="COMPARE.yaml", help="Experts, methods, tasks, seeds.", show_default=False)
    ],
    output: options.OutputFolder,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Measure cells again that were measured under other settings.")
    ] = False,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set an option of COMPARE.yaml, such as seeds=[0]; repeatable."
        ),
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run code that models wrote, in a sandbox; some tasks need it.")
    ] = False,
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="Examples of each task to show in the report.")
    ] = 20,
) -> None:
    """Compare methods on tasks; run again, it measures only what is missing."""
    settings = _settings(compare, override or [], allow_code=allow_code)
    from fusionroute.evaluation.compare.run import REPORT, RESULTS
    from fusionroute.evaluation.compare.run import compare as run
    from fusionroute.terminal.progress import RichProgress
    from fusionroute.terminal.tables import ensembling_table

    console = stdout()
    with RichProgress(console) as progress:
        record = run(
            settings,
            output,
            progress=progress,
            overwrite=overwrite,
            report_examples=examples,
            command=_command(compare, output, override or [], allow_code=allow_code),
        )
    console.print(_table(record))
    if (table := ensembling_table(record["cost"])) is not None:
        console.print(table)
    conclude(console, output / RESULTS, f"open {output / REPORT} in a browser")
    if record["failed"]:
        first = record["failed"][0]
        raise typer.Exit(
            complain(
                f"{len(record['failed'])} cells failed; the first, {first['method']} on {first['task']}: "
                f"{first['error']}",
                FAILED,
            )
        )


def _settings(path: Path, overrides: list[str], *, allow_code: bool) -> "CompareSettings":
    values = with_overrides(read_yaml(path), overrides)
    if allow_code:
        values["allow_code"] = True
    quiet()
    try:
        from fusionroute.evaluation.compare.settings import CompareSettings
    except ImportError as error:
        raise SettingsError(f"evaluation needs more libraries ({error}): pip install 'fusionroute[eval]'") from error
    return CompareSettings.parse(values, source=str(path))


def _command(path: Path, output: Path, overrides: list[str], *, allow_code: bool) -> str:
    """How the comparison is made again; the folders above its files are nobody's business."""
    sets = [part for override in overrides for part in ("--set", override)]
    allowed = ["--allow-code"] if allow_code else []
    return shlex.join(["fusionroute", "evaluate", path.name, "--output", output.name, *sets, *allowed])


def _table(record: dict[str, Any]) -> "Table":
    from fusionroute.evaluation.statistics import Estimate
    from fusionroute.terminal.tables import comparison_table

    fields = Estimate.__dataclass_fields__
    columns = [*record["tasks"], "average"]
    rows = {
        name: {
            column: Estimate(**{field: found[column][field] for field in fields}) if column in found else None
            for column in columns
        }
        for name, found in record["accuracy"].items()
    }
    caption = "right answers in percent, 95 % intervals below"
    return comparison_table(rows, caption=caption, bounds=record["bounds"])
