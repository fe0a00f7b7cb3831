"""Stage 1: the router learns the answers and the choice of expert together, Eq. (2). The experts are numbers by now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from fusionroute.errors import DataError, SettingsError
from fusionroute.models.router import Router, RouterOutput
from fusionroute.ops.losses import SFTSums, expected_nll, renormalised_nll, sft_sums
from fusionroute.training.scoring.fingerprint import token_counts
from fusionroute.training.scoring.scores import expert_names
from fusionroute.training.trainers.collator import IGNORED
from fusionroute.training.trainers.live import LiveExperts
from fusionroute.training.trainers.trainer import RouterArguments, RouterTrainer

MEASURED = ("lm_loss", "routing_loss", "informative", "routing_accuracy")


@dataclass
class SFTConfig(RouterArguments):
    """`RouterArguments` and the routing loss.

    Args:
        routing_weight: λ of Eq. (2), at least 0.
        aggregation: ``expected_nll`` or ``renormalised`` (spec, section 12, ii).
        positions: ``informative`` (the paper's S) or ``all``.

    Raises:
        SettingsError: a negative ``routing_weight``, an unknown ``aggregation`` or ``positions``.
    """

    routing_weight: float = 1 / 3
    aggregation: str = "expected_nll"
    positions: str = "informative"

    def __post_init__(self) -> None:
        if not self.routing_weight >= 0:
            raise SettingsError(f"routing_weight must be at least 0; got {self.routing_weight}")
        allowed = {"aggregation": ("expected_nll", "renormalised"), "positions": ("informative", "all")}
        for option, values in allowed.items():
            if getattr(self, option) not in values:
                raise SettingsError(f"{option} is {' or '.join(values)}; got {getattr(self, option)!r}")
        super().__post_init__()


class SFTTrainer(RouterTrainer):
    """Trains a `Router` on scored examples (see `load_scores`).

    Gradients go through the whole router: h is not detached. Besides ``loss`` it logs ``lm_loss``, ``routing_loss``,
    ``informative`` (share of answer positions), ``routing_accuracy`` (share of informative positions at which the
    chosen expert is the best one) and ``usage.<expert>`` (share of answer positions), all since the last log.

    Args:
        experts: names in the order of the route head; None takes all that are scored, and an empty one trains the LM
            alone (the fine-tuned baseline).
        live: the experts themselves, wanted by ``renormalised``.

    Raises:
        DataError: the examples carry no scores, or those of another number of experts.
        SettingsError: ``renormalised`` without ``live`` experts.
    """

    args: SFTConfig

    def __init__(
        self,
        model: Router,
        args: SFTConfig,
        train_dataset: Any,
        *,
        experts: Sequence[str] | None = None,
        lengths: Sequence[int] | None = None,
        live: LiveExperts | None = None,
        measured: Sequence[str] = (),
        callbacks: Sequence[TrainerCallback] = (),
        optimizers: tuple[Any, Any] = (None, None),
    ):
        names = expert_names(train_dataset) if experts is None else tuple(experts)
        if len(names) != model.num_experts and names:
            raise DataError(f"the router chooses among {model.num_experts} experts; scored are {', '.join(names)}")
        if args.aggregation == "renormalised" and names and live is None:
            raise SettingsError("aggregation 'renormalised' needs the experts in memory: pass live=LiveExperts(...)")
        self.live = live
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            experts=names,
            lengths=_lengths(train_dataset) if lengths is None else lengths,
            measured=[*MEASURED, *(f"usage.{name}" for name in names), *measured],
            callbacks=callbacks,
            optimizers=optimizers,
        )

    def counts(self, batch: dict[str, Tensor]) -> Tensor:
        """``[2]``: answer tokens, and those of them that teach routing."""
        is_answer = example_answers(batch)
        return torch.stack([is_answer.sum(), self._routed(batch, is_answer).sum()])

    def step_loss(self, outputs: RouterOutput, batch: dict[str, Tensor], counts: Tensor) -> Tensor:
        """Eq. (2)."""
        return self.sft_sums(outputs, batch).loss(self.args.routing_weight, *counts)

    def sft_sums(self, outputs: RouterOutput, batch: dict[str, Tensor]) -> SFTSums:
        """Both parts of Eq. (2), over the examples of a batch; pairs do not count."""
        assert outputs.logits is not None
        is_answer = example_answers(batch)
        routing = self._routing_nll(outputs, batch, self._routed(batch, is_answer))
        sums = sft_sums(outputs.logits[is_answer], batch["labels"][is_answer], routing)
        if outputs.logits.requires_grad:
            self._measure(sums, outputs, batch, is_answer)
        return sums

    def _routed(self, batch: dict[str, Tensor], is_answer: Tensor) -> Tensor:
        return is_answer & batch["informative"] if self.args.positions == "informative" else is_answer

    def _routing_nll(self, outputs: RouterOutput, batch: dict[str, Tensor], routed: Tensor) -> Tensor:
        assert outputs.route_logits is not None
        route_logits = outputs.route_logits[routed]
        if self.args.aggregation == "expected_nll" or self.live is None:
            return expected_nll(route_logits, batch["expert_nll"][routed])
        return renormalised_nll(route_logits, self.live.log_probs(batch, routed), batch["labels"][routed])

    def _measure(self, sums: SFTSums, outputs: RouterOutput, batch: dict[str, Tensor], is_answer: Tensor) -> None:
        assert outputs.route_logits is not None
        picked = outputs.route_logits[is_answer].argmax(-1)
        in_s, nll = batch["informative"][is_answer], batch["expert_nll"][is_answer]
        is_best = nll.gather(-1, picked[:, None])[:, 0] <= nll.amin(-1)
        self.meter.add("lm_loss", sums.lm, sums.tokens)
        self.meter.add("routing_loss", sums.routing, sums.routed)
        self.meter.add("informative", in_s.sum(), sums.tokens)
        self.meter.add("routing_accuracy", (is_best & in_s).sum(), in_s.sum())
        for number, name in enumerate(self.experts):
            self.meter.add(f"usage.{name}", (picked == number).sum(), sums.tokens)


def example_answers(batch: dict[str, Tensor]) -> Tensor:
    """Where a batch predicts answer tokens of examples, not of pairs: bool ``[sequences, positions]``."""
    return batch["labels"].ne(IGNORED) & batch["answer"].lt(0)[:, None]


def _lengths(train_dataset: Any) -> list[int]:
    return list(token_counts(train_dataset)) if isinstance(train_dataset, Dataset) else []
