"""One model writes alone: the baseline of every comparison."""

from collections.abc import Sequence as ListLike
from typing import Any

from fusionroute.engine.choice import append_tokens, choose_tokens
from fusionroute.engine.method import MakeRunner
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.models.team import context_length
from fusionroute.models.vocabulary import eos_ids


class Single:
    """A model alone, under its own name in the trace. A `Router` writes by its LM head."""

    def __init__(self, model: Any, name: str, *, make_runner: MakeRunner = Runner):
        self.runner = make_runner(model, name)
        self.runners = (self.runner,)
        self.eos_ids = frozenset(eos_ids(model))
        self.context_length = context_length(model)

    def step(self, sequences: ListLike[Sequence]) -> None:
        logits = self.runner.read(sequences).logits[:, -1].float()
        tokens = choose_tokens(logits, sequences)
        append_tokens(sequences, tokens, logits, experts=[self.runner.name] * len(sequences))
