"""The command line: a command parses, calls the library and prints. What is heavy is imported inside the commands."""

from typing import Annotated

import typer

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
from fusionroute.cli.roma import judging, pathways, tuning
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
app.command(short_help="Train a router over bundled tiny experts; see who writes what.")(demo)
app.command(short_help="Train a router over experts of yours, or go on with it.")(train)
app.command(short_help="Part 1 of train: what each expert says of the data.")(score)
app.command(short_help="Part 2 of train: the router, from scores that are there.")(sft)
app.command(short_help="Find what a team gets wrong, and something better.")(pairs)
app.command(short_help="Part 3 of train: preferences, on the router of sft.")(cdpo)
app.command(short_help="Answer prompts: coloured, plain, or as JSON lines.")(generate)
app.command(short_help="Talk with a team or an ensemble.")(chat)
app.command(short_help="Serve it to every OpenAI client, with a page to try it.")(serve)
app.command(short_help="Write a team as one checkpoint for vLLM.")(export)
app.command(short_help="Choose the drafter of an ensemble on prompts of yours.")(calibrate)
app.command(short_help="Merge fine-tunes of one base into one checkpoint.")(merge)
app.command(short_help="Let a judge compare two methods' answers: a win rate.")(judge)
app.command(short_help="Compare methods on tasks: a table and a page.")(evaluate)
app.command("lm-eval", context_settings=LM_EVAL_CONTEXT, short_help="lm-eval's own command, with our models.")(lm_eval)
app.command()(env)
roma_app = typer.Typer(
    help="Tune the routers of a mixture-of-experts model (RoMA), and see what that did.",
    short_help="Tune the routers of a mixture of experts (RoMA).",
)
roma_app.command()(tuning.sweep)
roma_app.command()(tuning.train)
roma_app.command()(tuning.apply)
roma_app.command()(judging.evaluate)
roma_app.command()(judging.oracle)
roma_app.command()(pathways.record)
roma_app.command()(pathways.report)
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
