"""FusionRoute (arXiv 2601.05106), Eq. (1): per token, the router picks an expert and adds its own log-probabilities."""

from collections.abc import Sequence as ListLike
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fusionroute.engine.choice import FUSED, append_tokens, choose_tokens
from fusionroute.engine.method import MakeRunner, Method
from fusionroute.engine.prefill import Asked, Budget, read_a_part, too_far_behind
from fusionroute.engine.runner import AnyRunner, Reading, Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.speculation import ModelDrafter, Pace, Speculation, SpeculationSettings
from fusionroute.engine.speculation.positions import Positions, in_rows, part_of
from fusionroute.models.team import TeamModels, context_length
from fusionroute.models.vocabulary import ROUTER
from fusionroute.ops.agreement import decided_by
from fusionroute.ops.fusion import fuse

DRAFT_MODEL = "draft model"  # how errors and costs call it


class FusionRoute(Method):
    """The router is asked for all sequences, each expert only for those that chose it.

    Args:
        complement: False drops the router's own log-probabilities, the paper's "without complementary logits": the
            chosen expert writes alone.
        speculation: draft and verify; None asks the models for one token at a time. Tokens are the same.
        draft_model: live, of the same tokenizer, where the settings let one draft.
        pace: what is known of how drafts fare; see `engine.speculation.Pace`.
    """

    scores_prompts = True

    def __init__(
        self,
        team: TeamModels,
        *,
        complement: bool = True,
        speculation: SpeculationSettings | None = None,
        draft_model: Any = None,
        pace: Pace | None = None,
        make_runner: MakeRunner = Runner,
    ):
        self.complement = complement
        self.router = make_runner(team.router, ROUTER)
        self.experts = [make_runner(model, name) for name, model in team.experts.items()]
        self.speculation = Speculation()
        if speculation is not None:
            self.speculation = Speculation.of(
                speculation,
                router=self.router,
                vocabulary=1 if speculation is None else _vocabulary(team.router),
                model=None if draft_model is None else _drafter(draft_model, team.router, make_runner),
                pace=pace,
            )
        self.runners = (self.router, *self.experts, *self.speculation.runners)
        self.eos_ids = team.eos_ids
        self.context_length = team.context_length
        self._budget: Budget | None = None  # of this round, see `prepare`
        self._awaited: dict[Sequence, AnyRunner] = {}  # an expert that first has to read a sequence that chose it

    def asked(self, sequence: Sequence) -> Asked:
        """The router, and the expert that the sequence waits for; which one that will be, only the router knows."""
        awaited = self._awaited.get(sequence)
        return [(self.router, sequence), *([(awaited, sequence)] if awaited is not None else [])]

    def prepare(self, sequences: ListLike[Sequence], budget: Budget | None) -> list[Sequence]:
        self._budget = budget
        return super().prepare(sequences, budget)

    @property
    def drafted(self) -> int | None:
        """Tokens that were proposed; None where nobody drafts."""
        return None if self.speculation.drafter is None else self.speculation.drafted

    @property
    def kept(self) -> int:
        """How many of those stand."""
        return self.speculation.kept

    def step(self, sequences: ListLike[Sequence]) -> None:
        positions = Positions(sequences)
        try:
            self.speculation.begin(positions, self._budget)
            self._write(positions)
        finally:
            self.speculation.end(positions, self.runners)

    def rollback(self, sequence: Sequence, length: int) -> None:
        super().rollback(sequence, length)
        self.speculation.rollback(sequence)

    def release(self, sequence: Sequence) -> None:
        super().release(sequence)
        self.speculation.release(sequence)
        self._awaited.pop(sequence, None)

    def _write(self, positions: Positions) -> None:
        """Append what is chosen behind each text, and behind each drafted token as long as that is chosen too."""
        router_logits, weights = self._ask_router(positions)
        if self.speculation.take_back_failures(positions, self.runners):
            return self._write(Positions(positions.sequences))
        reach = self._reach(positions, weights.argmax(-1).tolist())
        if reach == positions.counts:
            self._compose(positions, router_logits, weights)
        elif any(reach):
            nearer, rows = _as_far_as(reach, positions)
            try:
                self._compose(nearer, router_logits[rows], weights[rows])
            finally:
                nearer.withdraw()

    def _compose(self, positions: Positions, router_logits: Tensor, weights: Tensor) -> None:
        """Ask the experts and append, by what the router says at each row."""
        chosen = weights.argmax(-1)
        expert_logits = self._ask_experts(positions.sequences, positions.counts, chosen, router_logits)
        if self.speculation.take_back_failures(positions, self.runners):
            return self._write(Positions(positions.sequences))
        logits = fuse(router_logits, expert_logits, normalise=False) if self.complement else expert_logits
        tokens = choose_tokens(logits, positions.drawings)
        rows = positions.settle(tokens.tolist())
        positions.withdraw()
        if len(rows) < len(tokens):
            parts = (tokens, logits, router_logits, expert_logits, weights, chosen)
            tokens, logits, router_logits, expert_logits, weights, chosen = (part[rows] for part in parts)
        experts = [self.experts[expert].name for expert in chosen.tolist()]
        append_tokens(
            positions.written,
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
        counts = [last] * len(sequences)
        router_logits, weights = _weighed(in_rows(self.router.read(sequences, last), counts))
        expert_logits = self._ask_experts(sequences, counts, weights.argmax(-1), router_logits)
        said = fuse(router_logits, expert_logits) if self.complement else expert_logits.log_softmax(-1)
        return said.unflatten(0, (len(sequences), last))

    def _reach(self, positions: Positions, experts: list[int]) -> list[int]:
        """Rows of each sequence that can be written from: those before the first whose expert has too much to read.

        Without any, the sequence sits this round out while that expert reads a part; with some, its draft ends there.
        Where all would sit it out there is nobody to delay, and experts read as much as they have to.

        Args:
            experts: the chosen one at each row.
        """
        counts, sequences = positions.counts, positions.sequences
        if self._budget is None:
            return counts
        reach, begins = list(counts), list(accumulate(counts, initial=0))
        for expert in sorted(set(experts)):
            readers = part_of(expert, experts, counts).readers
            drafted = [counts[at] - 1 for at in readers]
            handles = [sequences[at] for at in readers]
            for late in too_far_behind(self.experts[expert], handles, drafted, self._budget):
                at = readers[late]
                reach[at] = min(reach[at], experts.index(expert, begins[at]) - begins[at])
        if self._budget.is_alone and not any(reach):
            reach = counts
        for at, sequence in enumerate(sequences):
            if reach[at]:
                self._awaited.pop(sequence, None)
            else:
                self._awaited[sequence] = runner = self.experts[experts[begins[at]]]
                read_a_part([(runner, sequence)], self._budget)
        return reach

    def _ask_router(self, positions: Positions) -> tuple[Tensor, Tensor]:
        """Logits ``[rows, vocabulary]`` and routing weights ``[rows, experts]``, float32."""
        if positions.said is not None:  # it drafted
            return _weighed(positions.said)
        return _weighed(in_rows(self.router.read(positions.sequences, positions.counts), positions.counts))

    def _ask_experts(
        self, sequences: ListLike[Sequence], counts: ListLike[int], chosen: Tensor, like: Tensor
    ) -> Tensor:
        """Logits of each row's expert, as ``like``: ``[rows, vocabulary]`` on the router's device.

        An expert reads a sequence that picks it somewhere, and says what it would write from the first such place on.

        Args:
            counts: rows of each sequence, the positions behind its last tokens.
            chosen: which expert, ``[rows]``.
        """
        experts = chosen.tolist()
        if len(set(experts)) == 1:
            return in_rows(self.experts[experts[0]].read(sequences, counts), counts).logits.to(like)
        logits = torch.empty_like(like)
        for expert in sorted(set(experts)):
            part = part_of(expert, experts, counts)
            reading = self.experts[expert].read([sequences[at] for at in part.readers], part.lasts)
            logits[part.rows] = in_rows(reading, part.lasts).logits[part.places].to(like)
        return logits


def _as_far_as(reach: ListLike[int], positions: Positions) -> tuple[Positions, list[int]]:
    """So many rows of each sequence, as positions of their own, and which rows these are."""
    first = accumulate(positions.counts, initial=0)
    rows = [begin + row for begin, count in zip(first, reach, strict=False) for row in range(count)]
    positions.withdraw()
    nearer = Positions([sequence for sequence, count in zip(positions.sequences, reach, strict=True) if count])
    drafts = [draft[: count - 1] for draft, count in zip(positions.drafts, reach, strict=True) if count]
    for at, draft in enumerate(drafts):
        for token in draft:
            nearer.append(at, token)
    return nearer, rows


def _drafter(model: Any, router: Any, make_runner: MakeRunner) -> ModelDrafter:
    runner = make_runner(model, DRAFT_MODEL)
    return ModelDrafter(runner, context_length(model), vocabulary=_vocabulary(model), most_ids=_vocabulary(router))


def _vocabulary(model: Any) -> int:
    return model.config.get_text_config().vocab_size


def _weighed(reading: Reading) -> tuple[Tensor, Tensor]:
    """A router's logits and routing weights, float32."""
    assert reading.route_logits is not None
    return reading.logits.float(), reading.route_logits.softmax(-1)
