"""Stage 1: the router learns the answers and the choice of expert together, Eq. (2). The experts are numbers by now."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from fusionroute.errors import DataError, FusionRouteError, SettingsError
from fusionroute.models.router import Router, RouterOutput
from fusionroute.ops.losses import SFTSums, sft_sums
from fusionroute.training.collator import IGNORED, collate
from fusionroute.training.interrupt import StopOnInterrupt
from fusionroute.training.scores import expert_names

logger = logging.getLogger(__name__)


@dataclass
class SFTConfig(TrainingArguments):
    """transformers' arguments with the paper's values where it gives them (spec, section 8).

    Args:
        routing_weight: λ of Eq. (2), at least 0.

    Raises:
        SettingsError: a negative ``routing_weight``.
    """

    routing_weight: float = 1 / 3
    learning_rate: float = 1e-5
    num_train_epochs: float = 1.0
    remove_unused_columns: bool = False  # the scores are no arguments of the model's forward
    report_to: Any = "none"
    logging_nan_inf_filter: bool = False  # a loss that is not finite stops training; it is not averaged away
    use_cache: bool = True  # else Trainer writes use_cache=False into the router's own config, and so into checkpoints

    def __post_init__(self) -> None:
        if not self.routing_weight >= 0:
            raise SettingsError(f"routing_weight must be at least 0; got {self.routing_weight}")
        super().__post_init__()


class SFTTrainer(Trainer):
    """A `transformers.Trainer` of a `Router` on scored examples (see `load_scores`).

    Gradients go through the whole router: h is not detached. Besides ``loss`` it logs ``lm_loss``, ``routing_loss``,
    ``informative`` (share of answer positions) and ``routing_accuracy`` (share of informative positions at which the
    chosen expert is the best one), all over the steps since the last log.

    Raises:
        DataError: the examples carry no scores, or those of another number of experts.
        SettingsError: FSDP or DeepSpeed, which shard weights that `Router` saves whole.
    """

    args: SFTConfig
    loss_is_scaled_for_ga = True  # our sums are divided by the counts of the whole accumulated step

    def __init__(
        self,
        model: Router,
        args: SFTConfig,
        train_dataset: Dataset,
        *,
        callbacks: Sequence[TrainerCallback] = (),
        optimizers: tuple[Any, Any] = (None, None),
    ):
        names = expert_names(train_dataset)
        if len(names) != model.num_experts:
            raise DataError(f"the router chooses among {model.num_experts} experts; scored are {', '.join(names)}")
        self.interrupt = StopOnInterrupt()
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=collate,
            callbacks=[*callbacks, self.interrupt],
            optimizers=optimizers,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise SettingsError("a router trains on one process or with DDP; FSDP and DeepSpeed are not supported yet")
        self._seen = _Seen()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, or go on from ``resume_from_checkpoint``.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
            FusionRouteError: the loss or its gradient is not finite; the last checkpoint stays.
        """
        with self.interrupt.listening():
            result = super().train(*args, **kwargs)
        if self.interrupt.was_asked:
            done = f"stopped after step {self.state.global_step} of {self.state.max_steps}"
            logger.warning("%s; the same command continues", done)
            raise KeyboardInterrupt(done)
        return result

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Eq. (2) of one batch, divided by what `_get_num_items_in_batch` counted for the whole step."""
        outputs = model(inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        sums = self._sums(outputs, inputs, is_training=model.training)
        tokens, informative = num_items_in_batch if num_items_in_batch is not None else (None, None)
        # DDP averages gradients over processes, but our counts are those of all of them together
        loss = sums.loss(self.args.routing_weight, tokens, informative) * self.accelerator.num_processes
        self._refuse_infinite("loss", loss.detach())
        return (loss, outputs) if return_outputs else loss

    def _sums(self, outputs: RouterOutput, inputs: dict[str, Tensor], *, is_training: bool) -> SFTSums:
        assert outputs.logits is not None
        assert outputs.route_logits is not None
        is_answer = inputs["labels"] != IGNORED
        route_logits, expert_nll = outputs.route_logits[is_answer], inputs["expert_nll"][is_answer]
        is_informative = inputs["informative"][is_answer]
        targets = inputs["labels"][is_answer]
        sums = sft_sums(outputs.logits[is_answer], route_logits, targets, expert_nll, is_informative)
        if is_training:
            self._seen.add(sums, route_logits, expert_nll, is_informative)
        return sums

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Any:
        """``[2]``: answer tokens and informative positions of a whole accumulated step, over all processes."""
        answers = sum(batch["labels"].ne(IGNORED).sum() for batch in batch_samples)
        informative = sum(batch["informative"].sum() for batch in batch_samples)
        counts = torch.stack([torch.as_tensor(answers), torch.as_tensor(informative)]).to(device)
        return self.accelerator.reduce(counts, reduction="sum")

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called just before the optimizer step: the last moment to keep the weights whole."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not self.args.fp16:  # float16's loss scaling skips such steps by itself
            self._refuse_infinite("gradient", norm)
        return norm

    def _refuse_infinite(self, what: str, value: Any) -> None:
        if not math.isfinite(float(value)):
            raise FusionRouteError(
                f"the {what} became {float(value)} at step {self.state.global_step + 1}; the checkpoints before it are "
                "whole: lower the learning rate, or look for broken examples"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # the summary at the end has none
            logs = {**logs, **self._seen.means(self.accelerator)}
            self._seen = _Seen()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The router as `Router.save_pretrained` writes it: safetensors, and loadable by itself."""
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        router: Any = model or self.model
        saved = Router.from_pretrained(resume_from_checkpoint, dtype=router.dtype, device="cpu")
        router.load_state_dict(saved.state_dict())


class _Seen:
    """Sums over the batches since the last log; means are taken once, when they are asked for."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    @torch.no_grad()
    def add(self, sums: SFTSums, route_logits: Tensor, expert_nll: Tensor, is_informative: Tensor) -> None:
        chosen = expert_nll.gather(-1, route_logits.argmax(-1, keepdim=True)).squeeze(-1)
        is_best = (chosen <= expert_nll.amin(-1)) & is_informative
        new = torch.stack([sums.lm, sums.routing, sums.tokens, sums.informative, is_best.sum()]).float()
        self.sums = new if self.sums is None else self.sums + new

    def means(self, accelerator: Any) -> dict[str, float]:
        if self.sums is None:
            return {}
        lm, routing, tokens, informative, best = accelerator.reduce(self.sums, reduction="sum").tolist()
        return {
            "lm_loss": lm / max(tokens, 1),
            "routing_loss": routing / max(informative, 1),
            "informative": informative / max(tokens, 1),
            "routing_accuracy": best / max(informative, 1),
        }
