"""RoMA's training loop: transformers' `Trainer` with the loss of Eq. (9), in which nothing but gates can move."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import TrainOutput

from fusionroute.errors import FusionRouteError
from fusionroute.interrupt import StopOnInterrupt
from fusionroute.models.gates import Gates, rows_of
from fusionroute.moe.questions.questions import Encoded
from fusionroute.moe.roma.batches import Collator, Rows, Targets, Where, answer_columns, answer_loss
from fusionroute.moe.roma.master_weights import MasterAdamW
from fusionroute.ops.manifold import manifold_loss

GATES_FILE = "gates.safetensors"


@dataclass
class RoMAArguments(TrainingArguments):
    """transformers' arguments; learning rate and the rest are ours, as the paper gives none.

    Args:
        weight: λ of Eq. (9).
    """

    weight: float = 1.0
    learning_rate: float = 1e-3
    num_train_epochs: float = 1.0
    remove_unused_columns: bool = False
    report_to: Any = "none"
    logging_nan_inf_filter: bool = False  # a loss that is not finite stops training; it is not averaged away
    use_cache: bool = True  # else Trainer writes use_cache=False into the model's config


class RoMATrainer(Trainer):
    """Trains the gates of a model on Eq. (9), λ being ``args.weight``; every other weight is frozen.

    Of each question: the mean negative log-likelihood of its right answer's tokens, plus λ times Eq. (7) at the aligned
    tokens of its prompt (the mean over them, if there are several). Of a batch, and of a step of several: the mean over
    questions. With λ = 0 the term is measured without gradient, so that nothing of the targets reaches a weight.

    Below the first chosen gate nothing requires a gradient, so the backward pass ends there.

    Args:
        gates: of the model that is trained; they alone get gradients.
        encoded: the questions; see `Collator` for the rest.
    """

    args: RoMAArguments
    loss_is_scaled_for_ga = True  # our sums are divided by the questions of the whole accumulated step

    def __init__(
        self,
        gates: Gates,
        args: RoMAArguments,
        encoded: Sequence[Encoded],
        targets: Targets,
        *,
        pad_id: int,
        where: Where = "last",
        count: int = 1,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        self.gates, self.interrupt = gates, StopOnInterrupt()
        self._sums: dict[str, float] = {}  # of what is logged beside the loss
        self._rows: list[Tensor] = []  # of the step that is being made, to be named if it fails
        if args.n_gpu > 1:
            args._n_gpu = 1  # else Trainer would copy the model to each of them, and copies have none of our hooks
        model: PreTrainedModel = gates.model
        model.requires_grad_(False)
        for weight in gates.parameters():
            weight.requires_grad_(True)
        super().__init__(
            model=model,
            args=args,
            train_dataset=Rows(len(encoded)),
            data_collator=Collator(encoded, targets, pad_id=pad_id, where=where, count=count),
            callbacks=[*callbacks, self.interrupt],
        )
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, or go on from ``resume_from_checkpoint``.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
            ModelOutputError: a gate's logits are not finite.
            FusionRouteError: the loss or its gradient is not finite; the last checkpoint stays.
        """
        with self.interrupt.listening():
            result = super().train(*args, **kwargs)
        if self.interrupt.was_asked:
            raise KeyboardInterrupt(f"stopped after step {self.state.global_step} of {self.state.max_steps}")
        return result

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # Without labels: with them, some families would add their load-balancing loss
        at = answer_columns(inputs["labels"])
        with self.gates.reading() as tap:
            outputs = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False,
                logits_to_keep=at,
            )  # fmt: skip
            routing = tap.routing(rows_of(inputs["attention_mask"], inputs["positions"]))
        self._refuse_cut_graph(routing)
        task = answer_loss(outputs.logits, inputs["labels"][:, at])
        with torch.set_grad_enabled(self.args.weight > 0 and torch.is_grad_enabled()):
            manifold = alignment(routing.flatten(1), inputs["targets"], inputs["weights"])
        loss = task + self.args.weight * manifold if self.args.weight > 0 else task
        self._refuse_infinite("loss", loss.detach(), inputs["row"])
        self._note(task_loss=task, manifold_loss=manifold)
        loss = loss.sum() / (len(loss) if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW; on float32 copies where gates are of lower precision, since a gate must have its model's dtype."""
        weights = self.gates.parameters()
        if self.optimizer is None and any(weight.dtype != torch.float32 for weight in weights):
            _, options = self.get_optimizer_cls_and_kwargs(self.args, self.gates.model)
            options = {name: value for name, value in options.items() if name in ("lr", "betas", "eps")}
            self.optimizer = MasterAdamW(weights, weight_decay=self.args.weight_decay, **options)
        return super().create_optimizer(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # the summary at the end has none
            count = self._sums.pop("count", 1.0)
            logs = {**logs, **{name: total / count for name, total in self._sums.items()}}
            self._sums = {}
        super().log(logs, start_time)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Any:
        self._rows = [batch["row"] for batch in batch_samples]
        return sum(len(rows) for rows in self._rows)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called just before the optimizer step: the last moment to keep the weights whole."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None:
            self._refuse_infinite("gradient", torch.as_tensor(norm), torch.cat(self._rows))
        return norm

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The gates alone: nothing else has changed."""
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: each.detach().cpu().contiguous() for name, each in self._weights()}, folder / GATES_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / GATES_FILE)
        with torch.no_grad():
            for name, weight in self._weights():
                weight.copy_(saved[name])

    def _weights(self) -> list[tuple[str, nn.Parameter]]:
        return [(gate.name, gate.weight) for gate in self.gates.gates]

    def _note(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach().sum())
        self._sums["count"] = self._sums.get("count", 0.0) + len(next(iter(values.values())))

    def _refuse_cut_graph(self, routing: Tensor) -> None:
        """Reentrant checkpointing shows hooks a routing without gradient: the gates would silently learn nothing."""
        if torch.is_grad_enabled() and not routing.requires_grad:
            raise FusionRouteError(
                "the routing has no gradient, so the gates would not be trained; with gradient checkpointing, use the "
                "form that is not reentrant ({'use_reentrant': False})"
            )

    def _refuse_infinite(self, what: str, values: Tensor, rows: Tensor) -> None:
        if torch.isfinite(values).all():
            return
        bad = rows[~torch.isfinite(values)] if values.ndim else rows
        named = ", ".join(str(row + 1) for row in sorted(set(bad.tolist())))
        raise FusionRouteError(
            f"the {what} is not finite at step {self.state.global_step + 1}, with questions {named}; the checkpoints "
            "before it are whole: lower the learning rate or λ, or look for what is broken in these questions"
        )


def alignment(routing: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Eq. (7) of each question; where several tokens are aligned, the mean over them.

    Args:
        routing: ``[b·T, L·E]``, the tokens of a question one after another.
        targets: ``[b, k, T, L·E]``.
        weights: ``[b, k]``.

    Returns:
        ``[b]``.
    """
    questions, k, tokens, size = targets.shape
    per_token = manifold_loss(
        routing,
        targets.transpose(1, 2).reshape(questions * tokens, k, size),
        weights.repeat_interleave(tokens, 0),
    )
    return per_token.view(questions, tokens).mean(1)
