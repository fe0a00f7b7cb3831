"""An answer on the screen while it is written, in the colours of its experts."""

from typing import Any

from rich.console import Console

from fusionroute.answering import TextByToken, check_text
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.sequence import Completion
from fusionroute.ensemble import Ensemble
from fusionroute.evaluation.compare.cost import drafts, runners_of, tokens_read
from fusionroute.team import Team
from fusionroute.terminal.tokens import expert_styles, legend, token_text


def write_answer(
    console: Console, team: Team | Ensemble, engine: Engine, prompt: Any, settings: GenerationSettings
) -> Completion:
    """Show an answer while it is written; Ctrl-C ends it, and what was written stays."""
    styles = expert_styles(team.expert_names)
    check_text(prompt)
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


class Meter:
    """What an engine's method does from here on, where models check each other's tokens, or a draft."""

    def __init__(self, engine: Engine):
        self.method = engine.method
        self._drafts, self._read, self._passes = drafts(self.method), tokens_read(self.method), self._count_passes()

    def cost(self) -> dict[str, Any]:
        """``drafted``, ``kept``, and by model ``tokens_read`` and forward ``passes``; nothing where nobody drafts."""
        if not self._drafts:
            return {}
        drafted = {name: count - self._drafts[name] for name, count in drafts(self.method).items()}
        read = {name: count - self._read[name] for name, count in tokens_read(self.method).items()}
        passes = {name: count - self._passes[name] for name, count in self._count_passes().items()}
        return {**drafted, "tokens_read": read, "passes": passes}

    def _count_passes(self) -> dict[str, int]:
        return {runner.name: runner.passes for runner in runners_of(self.method)}


def print_legend(
    console: Console, team: Team | Ensemble, completions: list[Completion], meter: Meter, *, explain: bool = True
) -> None:
    """Colours, each expert's share of the tokens and what they cost; see `legend`."""
    trace = [record for completion in completions for record in completion.trace]
    styles = expert_styles(team.expert_names)
    console.print(legend(styles, trace, explain=explain, cost=meter.cost()), soft_wrap=True)
