"""FusionRoute (arXiv 2601.05106), Eq. (1): per token, the router picks an expert and adds its own log-probabilities."""

from collections.abc import Sequence as ListLike

import torch
from torch import Tensor

from fusionroute.engine.choice import append_tokens, choose_tokens
from fusionroute.engine.method import MakeRunner
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.models.team import TeamModels
from fusionroute.models.vocabulary import ROUTER
from fusionroute.ops.agreement import decided_by
from fusionroute.ops.fusion import fuse


class FusionRoute:
    """The router is asked for all sequences, each expert only for those that chose it.

    Args:
        complement: False drops the router's own log-probabilities, the paper's "without complementary logits": the
            chosen expert writes alone.
    """

    def __init__(self, team: TeamModels, *, complement: bool = True, make_runner: MakeRunner = Runner):
        self.complement = complement
        self.router = make_runner(team.router, ROUTER)
        self.experts = [make_runner(model, name) for name, model in team.experts.items()]
        self.runners = (self.router, *self.experts)
        self.eos_ids = team.eos_ids
        self.context_length = team.context_length

    def step(self, sequences: ListLike[Sequence]) -> None:
        reading = self.router.read(sequences)
        assert reading.route_logits is not None
        router_logits = reading.logits[:, -1].float()
        weights = reading.route_logits[:, -1].softmax(-1)
        chosen = weights.argmax(-1).tolist()
        expert_logits = self._ask_experts(sequences, chosen, router_logits)
        logits = fuse(router_logits, expert_logits, normalise=False) if self.complement else expert_logits
        tokens = choose_tokens(logits, sequences)
        append_tokens(
            sequences,
            tokens,
            logits,
            experts=[self.experts[expert].name for expert in chosen],
            weights=weights.tolist(),
            decided_by=decided_by(tokens, router_logits.argmax(-1), expert_logits.argmax(-1))
            if self.complement
            else None,
        )

    def _ask_experts(self, sequences: ListLike[Sequence], chosen: list[int], like: Tensor) -> Tensor:
        """Logits of each sequence's expert, ``[sequences, vocabulary]``, on the router's device."""
        logits = torch.empty_like(like)
        for expert in sorted(set(chosen)):
            rows = [row for row, choice in enumerate(chosen) if choice == expert]
            reading = self.experts[expert].read([sequences[row] for row in rows])
            logits[rows] = reading.logits[:, -1].to(like)
        return logits
