"""FusionRoute (arXiv 2601.05106), Eq. (1): per token, the router picks an expert and adds its own log-probabilities."""

from collections.abc import Sequence as ListLike

import torch
from torch import Tensor

from fusionroute.engine.choice import FUSED, append_tokens, choose_tokens
from fusionroute.engine.method import MakeRunner, Method
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.models.team import TeamModels
from fusionroute.models.vocabulary import ROUTER
from fusionroute.ops.agreement import decided_by
from fusionroute.ops.fusion import fuse


class FusionRoute(Method):
    """The router is asked for all sequences, each expert only for those that chose it.

    Args:
        complement: False drops the router's own log-probabilities, the paper's "without complementary logits": the
            chosen expert writes alone.
    """

    scores_prompts = True

    def __init__(self, team: TeamModels, *, complement: bool = True, make_runner: MakeRunner = Runner):
        self.complement = complement
        self.router = make_runner(team.router, ROUTER)
        self.experts = [make_runner(model, name) for name, model in team.experts.items()]
        self.runners = (self.router, *self.experts)
        self.eos_ids = team.eos_ids
        self.context_length = team.context_length

    def step(self, sequences: ListLike[Sequence]) -> None:
        router_logits, weights = (each[:, -1] for each in self._ask_router(sequences, 1))
        chosen = weights.argmax(-1)
        expert_logits = self._ask_experts(sequences, chosen[:, None], router_logits[:, None])[:, -1]
        logits = fuse(router_logits, expert_logits, normalise=False) if self.complement else expert_logits
        tokens = choose_tokens(logits, sequences)
        experts = [self.experts[expert].name for expert in chosen.tolist()]
        append_tokens(
            sequences,
            tokens,
            logits,
            experts=experts,
            weights=weights.tolist(),
            decided_by=decided_by(tokens, router_logits.argmax(-1), expert_logits.argmax(-1))
            if self.complement
            else None,
            opinions=[
                (ROUTER, router_logits),
                (experts, expert_logits),
                *([(FUSED, logits)] if self.complement else []),
            ],
        )

    @torch.inference_mode()
    def log_probabilities(self, sequences: ListLike[Sequence], last: int = 1) -> Tensor:
        """Eq. (1) after each of the ``last`` tokens, by the expert that the router picks there; see `TeacherForced`.

        An expert reads only the sequences that pick it somewhere.
        """
        router_logits, weights = self._ask_router(sequences, last)
        expert_logits = self._ask_experts(sequences, weights.argmax(-1), router_logits)
        return fuse(router_logits, expert_logits) if self.complement else expert_logits.log_softmax(-1)

    def _ask_router(self, sequences: ListLike[Sequence], last: int) -> tuple[Tensor, Tensor]:
        """Logits ``[sequences, last, vocabulary]`` and routing weights ``[sequences, last, experts]``, float32."""
        reading = self.router.read(sequences, last)
        assert reading.route_logits is not None
        return reading.logits.float(), reading.route_logits.softmax(-1)

    def _ask_experts(self, sequences: ListLike[Sequence], chosen: Tensor, like: Tensor) -> Tensor:
        """Logits of each position's expert, as ``like``: ``[sequences, last, vocabulary]`` on the router's device.

        Args:
            chosen: which expert, ``[sequences, last]``.
        """
        logits = torch.empty_like(like)
        for expert in chosen.unique().tolist():
            rows = (chosen == expert).any(-1).nonzero().flatten()
            reading = self.experts[expert].read([sequences[row] for row in rows.tolist()], chosen.shape[1])
            mine = (chosen[rows] == expert).unsqueeze(-1)
            logits[rows] = torch.where(mine, reading.logits.to(like), logits[rows])
        return logits
