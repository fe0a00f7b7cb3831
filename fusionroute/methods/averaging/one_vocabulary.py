"""The average of all experts' next-token distributions, the plainest ensemble: all are asked for every token."""

from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from typing import Any

import torch
from torch import Tensor

from fusionroute.config import nearest
from fusionroute.engine.choice import FUSED, append_tokens, choose_tokens
from fusionroute.engine.method import MakeRunner, OfExperts
from fusionroute.engine.prefill import Asked
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.errors import SettingsError
from fusionroute.ops.averaging import SPACES, average, contributions, normalised_weights


class Averaging(OfExperts):
    """Σ_v w_v P_v, or the normalised exp Σ_v w_v log P_v. An expert of weight 0 is never asked.

    In the trace a token's expert is the one with the largest w_v P_v(token), the first of equals.

    Args:
        experts: name to causal LM, of one vocabulary.
        weights: w in the order of ``experts``, scaled to sum 1; None = equal ones.
        space: ``"probabilities"`` or ``"log_probabilities"``: of which the average is taken.

    Raises:
        SettingsError: weights that are negative, all 0, or not one per expert; another space.
        VocabularyError: experts of different vocabularies.
    """

    scores_prompts = True

    def __init__(
        self,
        experts: Mapping[str, Any],
        weights: ListLike[float] | None = None,
        space: str = "probabilities",
        *,
        make_runner: MakeRunner = Runner,
    ):
        super().__init__(experts, make_runner)
        if space not in SPACES:
            raise SettingsError(f"space: {nearest(space, SPACES)}")
        if weights is not None and len(weights) != len(experts):
            raise SettingsError(
                f"{len(weights)} weights came for {len(experts)} experts ({', '.join(experts)}); give one for each"
            )
        self.space = space
        self.weights = tuple(normalised_weights([1.0] * len(experts) if weights is None else [*weights]))
        self.asked_experts = [at for at, weight in enumerate(self.weights) if weight > 0]

    def step(self, sequences: ListLike[Sequence]) -> None:
        each = self._ask(sequences, 1)[:, :, -1]
        logits = average(each, self._asked_weights(), self.space)
        tokens = choose_tokens(logits, sequences)
        said = contributions(each, self._asked_weights())[:, torch.arange(len(sequences), device=tokens.device), tokens]
        names = [self.experts[at].name for at in self.asked_experts]
        append_tokens(
            sequences,
            tokens,
            logits,
            experts=[names[at] for at in said.argmax(0).tolist()],
            weights=[self.weights] * len(sequences),
            opinions=[*zip(names, each, strict=True), (FUSED, logits)],
        )

    def asked(self, sequence: Sequence) -> Asked:
        return [(self.experts[at], sequence) for at in self.asked_experts]

    @torch.inference_mode()
    def log_probabilities(self, sequences: ListLike[Sequence], last: int = 1) -> Tensor:
        """The average after each of the ``last`` tokens; see `TeacherForced`."""
        return average(self._ask(sequences, last), self._asked_weights(), self.space)

    def _ask(self, sequences: ListLike[Sequence], last: int) -> Tensor:
        """Log P_v of every expert that counts, ``[asked, sequences, last, vocabulary]``, on the first one's device."""
        readings = [self.experts[at].read(sequences, last).logits.float().log_softmax(-1) for at in self.asked_experts]
        return torch.stack([reading.to(readings[0].device) for reading in readings])

    def _asked_weights(self) -> Tensor:
        return torch.tensor([self.weights[at] for at in self.asked_experts])
