"""An answer on the screen while it is written, in the colours of its experts."""

from typing import Any

from rich.console import Console

from fusionroute.answering import TextByToken
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.sequence import Completion
from fusionroute.ensemble import Ensemble
from fusionroute.team import Team
from fusionroute.terminal import expert_styles, legend, token_text


def write_answer(
    console: Console, team: Team | Ensemble, engine: Engine, prompt: Any, settings: GenerationSettings
) -> Completion:
    """Show an answer while it is written; Ctrl-C ends it, and what was written stays."""
    styles = expert_styles(team.expert_names)
    sequence = engine.submit(team.prompt_format.encode(prompt), settings, prompt)
    cut = TextByToken(sequence)
    while not sequence.is_finished:
        try:
            engine.step()
        except KeyboardInterrupt:
            engine.cancel(sequence)
        written = cut.new()
        if sequence.trace and (rest := cut.rest()):
            written.append((sequence.trace[-1], rest))
        for writer, text in written:
            shown = token_text(text, writer.expert, writer.decided_by, styles, writer.verdict)
            console.print(shown, end="", soft_wrap=True)
    console.print()
    return sequence.completion()


def print_legend(
    console: Console, team: Team | Ensemble, completions: list[Completion], *, explain: bool = True
) -> None:
    """Colours and each expert's share of the tokens; see `legend`."""
    trace = [record for completion in completions for record in completion.trace]
    console.print(legend(expert_styles(team.expert_names), trace, explain=explain), soft_wrap=True)
