"""At every token the expert writes that is surest of it."""

from collections.abc import Sequence as ListLike

import torch

from fusionroute.engine.choice import append_tokens, choose_tokens
from fusionroute.engine.method import OfExperts
from fusionroute.engine.sequence import Sequence


class MostCertain(OfExperts):
    """The distribution whose largest probability is the largest: w = 1 at argmax_v max_x P_v(x), 0 elsewhere."""

    scores_prompts = True

    def step(self, sequences: ListLike[Sequence]) -> None:
        said = self._read(sequences, 1)[:, :, -1]
        surest = said.amax(-1).argmax(0)
        logits = said[surest, torch.arange(len(sequences))]
        tokens = choose_tokens(logits, sequences)
        names = [self.experts[expert].name for expert in surest.tolist()]
        append_tokens(sequences, tokens, logits, experts=names)

    @torch.inference_mode()
    def log_probabilities(self, sequences: ListLike[Sequence], last: int = 1) -> torch.Tensor:
        """What it would write from behind each of the last tokens; tasks of likelihoods need it."""
        said = self._read(sequences, last)
        surest = said.amax(-1, keepdim=True).argmax(0, keepdim=True)
        return said.gather(0, surest.expand(1, *said.shape[1:]))[0]

    def _read(self, sequences: ListLike[Sequence], last: int) -> torch.Tensor:
        """Log-probabilities ``[experts, sequences, last, vocabulary]``."""
        each = [expert.read(sequences, last).logits.float().log_softmax(-1) for expert in self.experts]
        return torch.stack(each)
