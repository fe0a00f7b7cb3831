"""What both stages share: transformers' `Trainer` for a `Router`, with losses that are means over a whole step."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from fusionroute.errors import FusionRouteError
from fusionroute.interrupt import StopOnInterrupt
from fusionroute.models.router import Router, RouterOutput
from fusionroute.training.trainers.batches import LengthGroupedBatches
from fusionroute.training.trainers.collator import Collator
from fusionroute.training.trainers.meter import Meter

logger = logging.getLogger(__name__)


@dataclass
class RouterArguments(TrainingArguments):
    """transformers' arguments with the paper's values where it gives them (spec, section 8).

    Args:
        group_by_length: see `LengthGroupedBatches`.
    """

    group_by_length: bool = False
    learning_rate: float = 1e-5
    num_train_epochs: float = 1.0
    remove_unused_columns: bool = False  # the scores are no arguments of the model's forward
    report_to: Any = "none"
    logging_nan_inf_filter: bool = False  # a loss that is not finite stops training; it is not averaged away
    use_cache: bool = True  # else Trainer writes use_cache=False into the router's own config, and so into checkpoints


class RouterTrainer(Trainer):
    """Counts, scales, logs, saves; a subclass says what is counted and what the objective is.

    Args:
        experts: names, in the order of the route head; see `Collator`.
        lengths: tokens of each item of ``train_dataset``, wanted by ``group_by_length``.
        measured: names of what the subclass puts into ``self.meter``; their means are logged beside ``loss``.
    """

    args: RouterArguments
    loss_is_scaled_for_ga = True  # our sums are divided by the counts of the whole accumulated step

    def __init__(
        self,
        model: Router,
        args: RouterArguments,
        train_dataset: Dataset,
        *,
        experts: Sequence[str],
        lengths: Sequence[int],
        measured: Sequence[str],
        callbacks: Sequence[TrainerCallback] = (),
        optimizers: tuple[Any, Any] = (None, None),
    ):
        self.experts, self.lengths, self.meter = tuple(experts), lengths, Meter(measured)
        self._rows: list[Tensor] = []  # of the step that is being made, to be named if it fails
        self.interrupt = StopOnInterrupt()
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=Collator(experts),
            callbacks=[*callbacks, self.interrupt],
            optimizers=optimizers,
        )

    def counts(self, batch: dict[str, Tensor]) -> Tensor:
        """What `step_loss` divides by; summed over all batches and processes of a step."""
        raise NotImplementedError

    def step_loss(self, outputs: RouterOutput, batch: dict[str, Tensor], counts: Tensor) -> Tensor:
        """This batch's share of the loss of a step whose `counts` these are. Scalar."""
        raise NotImplementedError

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
        outputs = model(inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        counts = self.counts(inputs) if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes, but our counts are those of all of them together
        loss = self.step_loss(outputs, inputs, counts) * self.accelerator.num_processes
        self._refuse_infinite("loss", loss.detach(), [inputs["row"]])
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Any:
        self._rows = [batch["row"] for batch in batch_samples]
        counts = torch.stack([self.counts(batch) for batch in batch_samples]).sum(0).to(device)
        return self.accelerator.reduce(counts, reduction="sum")

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if not self.args.group_by_length:
            return super()._get_train_sampler(train_dataset)
        together = self.args.train_batch_size * self.accelerator.num_processes
        return LengthGroupedBatches(self.lengths, together, self.args.seed)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called just before the optimizer step: the last moment to keep the weights whole."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not self.args.fp16:  # float16's loss scaling skips such steps by itself
            self._refuse_infinite("gradient", norm, self._rows)
        return norm

    def _refuse_infinite(self, what: str, value: Any, batches: Sequence[Tensor]) -> None:
        if not math.isfinite(float(value)):
            rows = ", ".join(str(row) for row in sorted(set(torch.cat(list(batches)).tolist())))
            raise FusionRouteError(
                f"the {what} became {float(value)} at step {self.state.global_step + 1}, in a batch of rows {rows}; "
                "the checkpoints before it are whole: lower the learning rate, or look for what is broken in these rows"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # the summary at the end has none
            logs = {**logs, **self.meter.means(self.accelerator)}
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The router as `Router.save_pretrained` writes it: safetensors, and loadable by itself."""
        if self.args.should_save:
            router = self.accelerator.unwrap_model(self.model)
            router.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        router: Any = model or self.model
        saved = Router.from_pretrained(resume_from_checkpoint, dtype=router.dtype, device="cpu")
        router.load_state_dict(saved.state_dict())
