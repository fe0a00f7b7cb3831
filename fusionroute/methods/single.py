"""One model writes alone: the baseline of every comparison."""

from collections.abc import Sequence as ListLike
from typing import Any

import torch
from torch import Tensor

from fusionroute.engine.choice import append_tokens, choose_tokens
from fusionroute.engine.method import MakeRunner, Method
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.models.team import context_length
from fusionroute.models.vocabulary import eos_ids


class Single(Method):
    """A model alone, under its own name in the trace. A `Router` writes by its LM head."""

    scores_prompts = True

    def __init__(self, model: Any, name: str, *, make_runner: MakeRunner = Runner):
        self.runner = make_runner(model, name)
        self.runners = (self.runner,)
        self.eos_ids = frozenset(eos_ids(model))
        self.context_length = context_length(model)

    def step(self, sequences: ListLike[Sequence]) -> None:
        logits = self.runner.read(sequences).logits[:, -1].float()
        tokens = choose_tokens(logits, sequences)
        append_tokens(sequences, tokens, logits, experts=[self.runner.name] * len(sequences))

    @torch.inference_mode()
    def log_probabilities(self, sequences: ListLike[Sequence], last: int = 1) -> Tensor:
        """The model's own after each of the ``last`` tokens; see `TeacherForced`."""
        return self.runner.read(sequences, last).logits.float().log_softmax(-1)
