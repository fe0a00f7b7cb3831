"""``fusionroute judge``: how often a judge prefers one method's answers to another's."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fusionroute.cli import options
from fusionroute.cli.console import conclude, say, stdout
from fusionroute.cli.failing import FAILED, complain
from fusionroute.errors import SettingsError

if TYPE_CHECKING:
    from fusionroute.evaluation.judge.cost import Cost
    from fusionroute.evaluation.judge.win_rate import JudgeSettings

JUDGE, COST = "The judge", "Cost"
ANSWERS = (
    "JSON lines of `prompt` or `messages` and `text` or `answer`, as `generate --json` writes them; or a cell of a "
    "comparison."
)


def judge(
    answers_a: Annotated[Path, typer.Argument(metavar="A.jsonl", help=ANSWERS, show_default=False)],
    answers_b: Annotated[
        Path, typer.Argument(metavar="B.jsonl", help="Other answers to the same prompts.", show_default=False)
    ],
    judge_url: Annotated[
        str,
        typer.Option(
            "--judge-url",
            help="OpenAI-compatible, such as http://host:8000/v1; the key is that of OPENAI_API_KEY.",
            rich_help_panel=JUDGE,
            show_default=False,
        ),
    ],
    judge_model: Annotated[
        str, typer.Option("--judge-model", help="The model there.", rich_help_panel=JUDGE, show_default=False)
    ],
    output: options.OutputFolder,
    order: Annotated[
        str,
        typer.Option(
            "--order",
            help="Which answer it reads first: random (a coin per prompt), both (asked twice), or first (A's, always).",
            rich_help_panel=JUDGE,
        ),
    ] = "random",
    ties: Annotated[
        str,
        typer.Option("--ties", help="Equal scores are no win (forbid) or half a win (half).", rich_help_panel=JUDGE),
    ] = "forbid",
    seed: Annotated[int, typer.Option("--seed", help="Of --order random.", rich_help_panel=JUDGE)] = 0,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, help="Requests under way at a time.", rich_help_panel=JUDGE)
    ] = 8,
    price_in: Annotated[
        float | None, typer.Option("--price-in", min=0, help="Per million tokens it reads.", rich_help_panel=COST)
    ] = None,
    price_out: Annotated[
        float | None, typer.Option("--price-out", min=0, help="Per million tokens it writes.", rich_help_panel=COST)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Go ahead without asking back.", rich_help_panel=COST)] = False,
) -> None:
    """Let a judge compare two methods' answers: the share that A wins. Run again, it continues where it stopped."""
    if (price_in is None) is not (price_out is None):
        raise SettingsError("--price-in and --price-out belong together; give both or none")
    settings = _judge_settings({"judge_model": judge_model, "order": order, "ties": ties, "seed": seed})
    from fusionroute.evaluation.judge.origin import title
    from fusionroute.evaluation.judge.win_rate import RESULT_FILE, win_rate
    from fusionroute.terminal.progress import RichProgress

    console = stdout()
    prices = None if price_in is None or price_out is None else (price_in, price_out)

    def confirm(cost: "Cost") -> None:
        _confirm(console, cost, prices, yes)

    with RichProgress(console) as progress:
        try:
            result = win_rate(
                answers_a, answers_b, settings, output, judge_url=judge_url, at_once=at_once, confirm=confirm,
                progress=progress,
            )  # fmt: skip
        except SettingsError as error:
            raise SettingsError(_as_options(str(error))) from None
    if result.win_rate is None:
        raise typer.Exit(complain(f"{result}; read the replies in {output / 'verdicts.jsonl'}", FAILED))
    say(console, f"{title(answers_a, answers_b)}: {result}")
    if (first := result.first_preferred) is not None:
        say(
            console,
            f"the answer shown first was preferred in {100 * first.value:.1f} % of {first.n} "
            f"({100 * first.low:.1f} to {100 * first.high:.1f})",
        )
    conclude(console, output / RESULT_FILE, f"read some replies in {output / 'verdicts.jsonl'} before you trust them")


def _confirm(console: Console, cost: "Cost", prices: tuple[float, float] | None, yes: bool) -> None:
    """Say what it will cost; without --yes ask whoever sits there, and go no further if nobody does."""
    console.print(str(cost), soft_wrap=True, markup=False)
    if prices is not None:
        console.print(f"at these prices about {cost.money(*prices):,.2f}", soft_wrap=True)
    if yes:
        return
    if not (sys.stdin.isatty() and console.is_terminal):
        raise SettingsError(f"{cost.calls:,} calls may cost money and nobody is here to confirm; add --yes")
    typer.confirm("Ask the judge?", abort=True)


def _judge_settings(values: dict[str, object]) -> "JudgeSettings":
    from fusionroute.evaluation.judge.win_rate import JudgeSettings

    try:
        return JudgeSettings.parse(values)
    except SettingsError as error:
        raise SettingsError(f"--{str(error).replace('_', '-', 1)}") from None


def _as_options(message: str) -> str:
    """As they are called here."""
    for name in ("judge_url", "judge_model"):
        message = message.replace(name, f"--{name.replace('_', '-')}")
    return message
