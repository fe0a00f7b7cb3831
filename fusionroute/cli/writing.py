"""An answer on the screen while it is written, in the colours of its experts."""

from typing import Any

from rich.console import Console

from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.sequence import Completion
from fusionroute.team import Team
from fusionroute.terminal import expert_styles, legend, token_text


def write_answer(console: Console, team: Team, engine: Engine, prompt: Any, settings: GenerationSettings) -> Completion:
    """Show an answer while it is written; Ctrl-C ends it, and what was written stays."""
    styles, shown = expert_styles(team.expert_names), 0
    sequence = engine.submit(team.prompt_format.encode(prompt), settings)
    while not sequence.is_finished:
        try:
            engine.step()
        except KeyboardInterrupt:
            engine.cancel(sequence)
        text = sequence.settled_text
        if len(text) > shown:
            writer = sequence.trace[-1]
            console.print(token_text(text[shown:], writer.expert, writer.decided_by, styles), end="", soft_wrap=True)
        shown = len(text)
    console.print()
    return sequence.completion()


def print_legend(console: Console, team: Team, completions: list[Completion], *, explain: bool = True) -> None:
    """Colours and each expert's share of the tokens; see `legend`."""
    trace = [record for completion in completions for record in completion.trace]
    console.print(legend(expert_styles(team.expert_names), trace, explain=explain), soft_wrap=True)
