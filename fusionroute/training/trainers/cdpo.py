"""Stage 2: CDPO on preference pairs, mixed with the examples of stage 1: Eq. (3) and Algorithm 1."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback

from fusionroute.errors import DataError, SettingsError
from fusionroute.models.router import Router, RouterOutput
from fusionroute.ops.losses import at_least_one, cdpo_logits, cdpo_loss, log_normaliser, target_nll
from fusionroute.training.scoring.fingerprint import token_counts
from fusionroute.training.trainers.collator import IGNORED, Item
from fusionroute.training.trainers.live import LiveExperts
from fusionroute.training.trainers.sft import SFTConfig, SFTTrainer

MEASURED = ("cdpo_loss", "bias", "margin", "preferred", "saturated")
SATURATED = 0.01  # a pair whose gradient is weighed by less than this teaches nothing


class Mixture(Dataset):
    """D_mix of Algorithm 1: examples and pairs, one item each; the trainer's sampler mixes them.

    Args:
        examples: scored examples, of which ``count`` are drawn by ``seed``.
        pairs: scored sequences, the chosen answer of pair k in row 2k, the rejected one in row 2k + 1.
    """

    def __init__(self, examples: datasets.Dataset, pairs: datasets.Dataset, count: int, seed: int):
        if count > len(examples):
            raise DataError(f"{count} examples are wanted beside the pairs, but there are only {len(examples)}")
        self.drawn = sorted(random.Random(seed).sample(range(len(examples)), count))
        self.examples, self.pairs = examples, pairs

    def __len__(self) -> int:
        return len(self.drawn) + len(self.pairs) // 2

    def __getitem__(self, index: int) -> Item:
        if index < len(self.drawn):
            return self.examples[self.drawn[index]]
        first = 2 * (index - len(self.drawn))
        return self.pairs[first], self.pairs[first + 1]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each item; of a pair, those of its longer sequence."""
        pairs = token_counts(self.pairs).reshape(-1, 2).max(1)
        return [*token_counts(self.examples)[self.drawn].tolist(), *pairs.tolist()]


@dataclass
class CDPOConfig(SFTConfig):
    """`SFTConfig` and the preference loss.

    Args:
        beta: β of Eq. (3), at least 0.
        form: ``printed`` or ``normalised`` (spec, section 12, v).

    Raises:
        SettingsError: a negative ``beta``, an unknown ``form``.
    """

    beta: float = 0.1
    form: str = "printed"

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise SettingsError(f"beta must be at least 0; got {self.beta}")
        if self.form not in ("printed", "normalised"):
            raise SettingsError(f"form is printed or normalised; got {self.form!r}")
        super().__post_init__()


class CDPOTrainer(SFTTrainer):
    """Trains the router of stage 1 on a `Mixture`.

    The loss of a step is the mean over its items: L_SFT for examples, L_CDPO for pairs. Pairs reach the route head by
    nothing but an argmax, so they leave no gradient there. Besides what `SFTTrainer` logs (over the examples):
    ``cdpo_loss``; ``bias``, the mean B; ``margin``, the mean ℓ of the router alone; ``preferred``, the share of pairs
    whose loss is below that of a coin; ``saturated``, the share whose gradient is weighed by less than 0.01.

    Args:
        live: wanted by ``normalised``, as by ``renormalised``.

    Raises:
        SettingsError: ``normalised`` without ``live`` experts.
    """

    args: CDPOConfig

    def __init__(
        self,
        model: Router,
        args: CDPOConfig,
        train_dataset: Mixture,
        *,
        experts: Sequence[str],
        live: LiveExperts | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        optimizers: tuple[Any, Any] = (None, None),
    ):
        if args.form == "normalised" and experts and live is None:
            raise SettingsError("form 'normalised' needs the experts in memory: pass live=LiveExperts(...)")
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            experts=experts,
            lengths=train_dataset.lengths,
            live=live,
            measured=MEASURED,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    def counts(self, batch: dict[str, Tensor]) -> Tensor:
        """``[4]``: answer tokens and routed positions of the examples, examples, pairs."""
        examples = batch["answer"].lt(0).sum()
        pairs = (len(batch["answer"]) - examples) // 2
        return torch.cat([super().counts(batch), torch.stack([examples, pairs])])

    def step_loss(self, outputs: RouterOutput, batch: dict[str, Tensor], counts: Tensor) -> Tensor:
        """Algorithm 1, with the full Eq. (2) on examples (spec, section 12, iv)."""
        tokens, routed, examples, pairs = counts
        sft = self.sft_sums(outputs, batch).loss(self.args.routing_weight, tokens, routed)
        return (examples * sft + self.cdpo_sum(outputs, batch)) / at_least_one(examples + pairs)

    def cdpo_sum(self, outputs: RouterOutput, batch: dict[str, Tensor]) -> Tensor:
        """Eq. (3), summed over the pairs of a batch."""
        assert outputs.logits is not None
        assert outputs.route_logits is not None
        is_answer = batch["labels"].ne(IGNORED) & batch["answer"].ge(0)[:, None]
        owner = batch["answer"][:, None].expand_as(is_answer)[is_answer]  # the answer that each token is part of
        logits, targets = outputs.logits[is_answer], batch["labels"][is_answer]
        picked = outputs.route_logits[is_answer].argmax(-1)
        expert_nll = batch["expert_nll"][is_answer].gather(-1, picked[:, None])[:, 0]
        reference = batch["reference"][batch["answer"] >= 0].view(-1, 2)

        def summed(by_token: Tensor) -> Tensor:
            by_answer = torch.zeros(2 * len(reference), dtype=by_token.dtype, device=by_token.device)
            return by_answer.index_add(0, owner, by_token).view(-1, 2)

        policy, expert = summed(-target_nll(logits, targets)), summed(-expert_nll)
        normaliser = None
        if self.args.form == "normalised" and self.live is not None:
            normaliser = summed(log_normaliser(logits, self.live.picked_logits(batch, is_answer, picked)))
        inside = cdpo_logits(policy, reference, expert, self.args.beta, normaliser)
        losses = cdpo_loss(inside)
        if losses.requires_grad:
            self._measure_pairs(inside.detach(), losses.detach(), policy.detach() - reference, expert)
        return losses.sum()

    def _measure_pairs(self, inside: Tensor, losses: Tensor, gained: Tensor, expert: Tensor) -> None:
        beta, pairs = self.args.beta, len(inside)
        self.meter.add("cdpo_loss", losses.sum(), pairs)
        self.meter.add("bias", beta * (expert[:, 0] - expert[:, 1]).sum(), pairs)
        self.meter.add("margin", beta * (gained[:, 0] - gained[:, 1]).sum(), pairs)
        self.meter.add("preferred", (inside > 0).sum(), pairs)
        self.meter.add("saturated", ((-inside).sigmoid() < SATURATED).sum(), pairs)
