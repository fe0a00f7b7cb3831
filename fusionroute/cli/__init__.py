"""The command line: a command parses, calls the library and prints. What is heavy is imported inside the commands."""

from typing import Annotated

import typer

from fusionroute.cli import pathways as pathway_commands
from fusionroute.cli import roma as roma_commands
from fusionroute.cli.calibrate import calibrate
from fusionroute.cli.chat import chat
from fusionroute.cli.env import env
from fusionroute.cli.evaluate import evaluate
from fusionroute.cli.export import export
from fusionroute.cli.failing import OneLineErrors
from fusionroute.cli.generate import generate
from fusionroute.cli.judge import judge
from fusionroute.cli.lm_eval import CONTEXT as LM_EVAL_CONTEXT
from fusionroute.cli.lm_eval import lm_eval
from fusionroute.cli.merge import merge
from fusionroute.cli.pairs import pairs
from fusionroute.cli.serve import serve
from fusionroute.cli.train import cdpo, score, sft, train
from fusionroute.cli.zoo import build, demo, examples, listing, take
from fusionroute.environment import versions

app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Several language models write one answer together, token by token.",
    epilog="Start with `fusionroute demo`: it trains a team over bundled tiny models in a few minutes.",
)
app.command()(demo)
app.command()(train)
app.command()(score)
app.command()(sft)
app.command()(pairs)
app.command()(cdpo)
app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(export)
app.command()(calibrate)
app.command()(merge)
app.command()(judge)
app.command()(evaluate)
app.command("lm-eval", context_settings=LM_EVAL_CONTEXT)(lm_eval)
app.command()(env)
roma_app = typer.Typer(help="Tune the routers of a mixture-of-experts model (RoMA), and see what that did.")
roma_app.command()(pathway_commands.record)
roma_app.command()(roma_commands.train)
roma_app.command()(roma_commands.apply)
roma_app.command()(roma_commands.evaluate)
roma_app.command()(roma_commands.oracle)
roma_app.command()(roma_commands.sweep)
roma_app.command()(pathway_commands.report)
app.add_typer(roma_app, name="roma")
zoo_app = typer.Typer(help="The bundled tiny models and tasks.")
zoo_app.command("list")(listing)
zoo_app.command()(examples)
zoo_app.command()(take)
zoo_app.command()(build)
app.add_typer(zoo_app, name="zoo")


def main() -> None:
    """The entry point of ``fusionroute`` and of ``python -m fusionroute``."""
    app(prog_name="fusionroute")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fusionroute {versions()['fusionroute']}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None: ...
