"""How the demo shows what it found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusionroute.engine.sequence import Completion
from fusionroute.evaluation.comparison import Comparison
from fusionroute.evaluation.statistics import Estimate
from fusionroute.models.team import TeamModels
from fusionroute.terminal.progress import duration
from fusionroute.terminal.tables import comparison_table
from fusionroute.terminal.tokens import coloured_answer, expert_styles, legend
from fusionroute.zoo.contest import differences, task_kinds
from fusionroute.zoo.tasks import Example, check

SHOWN = ("all_three", "translation", "sums", "functions", "words")
NEXT_PROMPT = "Ann has 23 pens, buys 14 more. How many now?"


def opening(experts: Sequence[str], per_task: int) -> str:
    """What is going to happen."""
    kinds = {kind: len(tasks) for kind, tasks in task_kinds().items()}
    return (
        f"Tiny experts: {', '.join(experts)}.\n"
        f"Tasks: {kinds['one_expert']} that one of them knows, {kinds['mixed']} that mix their skills, "
        f"{kinds['unknown']} that none knows.\n"
        f"A router learns from {per_task} examples of each whom to ask for the next token, and what to say itself;\n"
        "then from the mistakes that the team makes on other questions.\n"
    )


def show(
    console: Console,
    comparison: Comparison,
    team: TeamModels,
    test: Mapping[str, Sequence[Example]],
    fused: Sequence[Completion],
) -> None:
    """Table, differences, sample answers of the fused team."""
    count = len(next(iter(test.values())))
    console.print()
    console.print(
        comparison_table(
            comparison.rows(),
            title="Right answers in percent",
            caption=f"{count} unseen questions a task, greedy decoding; below each value its 95 % interval.",
        )
    )
    console.print()
    for label, gain in differences(comparison).items():
        console.print(f"{label}: {_points(gain)}", markup=False)
    console.print()
    _show_samples(console, team, test, fused)


def _points(gain: Estimate) -> str:
    return f"{100 * gain.value:+z.0f} points (95 % interval {100 * gain.low:+z.0f} to {100 * gain.high:+z.0f})"


def _show_samples(
    console: Console, team: TeamModels, test: Mapping[str, Sequence[Example]], fused: Sequence[Completion]
) -> None:
    """The first test question of some tasks, whether it went well or not."""
    items = [example for task in test.values() for example in task]
    first = {items[at].task: (items[at], fused[at]) for at in reversed(range(len(items)))}
    styles, shown = expert_styles(team.expert_names), [first[task] for task in SHOWN]
    console.print(_side_by_side(Text("who wrote what", "bold"), Text("reference answer", "bold")))
    for (example, answer), right in zip(shown, check(*_unzip(shown)), strict=True):
        mark = Text("✓", "bold #009e73") if right else Text("✗", "bold #d55e00")
        console.print()
        console.print(Text.assemble(mark, (f" {example.task}: {example.prompt}", "dim")))
        console.print(_side_by_side(coloured_answer(answer, team.tokenizer, styles), Text(example.answer)))
    console.print()
    console.print(legend(styles, [record for _, answer in shown for record in answer.trace]))
    console.print()


def _side_by_side(left: Text, right: Text) -> Table:
    table = Table.grid(expand=True, padding=(0, 0, 0, 2), pad_edge=True)
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    table.add_row(left, right)
    return table


def _unzip(shown: Sequence[tuple[Example, Completion]]) -> tuple[list[Example], list[str]]:
    return [example for example, _ in shown], [answer.text for _, answer in shown]


def closing(folder: Path, seconds: Mapping[str, float], files: Mapping[str, str]) -> str:
    """How long it took, where everything lies, what to type next."""
    stages = ", ".join(f"{stage} {duration(time)}" for stage, time in seconds.items() if stage != "total")
    listed = "".join(f"\n  {name:14} {what}" for name, what in files.items())
    return (
        f"Took {duration(seconds['total'])} ({stages}).\n"
        f"{folder} is a team folder now; besides the team it holds{listed}\n\n"
        "Next:\n"
        f'  fusionroute generate {folder} "{NEXT_PROMPT}"\n'
        f"  fusionroute chat {folder}\n"
        f"  fusionroute serve {folder}      # OpenAI's API and a playground in the browser"
    )
