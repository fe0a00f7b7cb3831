"""Prompt tuning and prefix tuning, the baselines that leave a model as it is and learn what stands before the text."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from fusionroute.config import OptimiserSettings, Settings
from fusionroute.errors import ModelOutputError, SettingsError
from fusionroute.models.loading import ModelReference, load_model, load_tokenizer
from fusionroute.models.prompt import PromptFormat, PromptName
from fusionroute.moe.questions.questions import Encoded
from fusionroute.moe.roma.batches import IGNORED, Rows, answer_columns, answer_loss, pad_right
from fusionroute.moe.roma.data import encode_sources, judging_sets, padding_id, read_sources, refuse_same_texts
from fusionroute.moe.roma.settings import QuestionSettings
from fusionroute.moe.roma.watching import ReportSteps
from fusionroute.output import new_folder, refuse_existing
from fusionroute.progress import Progress, Silent


class PromptOptimiser(OptimiserSettings):
    """Few numbers are trained, in large steps."""

    learning_rate: float = Field(1e-2, gt=0)


class SoftPromptSettings(Settings):
    """What is trained, and how. RoMA's paper gives no size and no value of these baselines: all are our choice."""

    model: ModelReference
    data: QuestionSettings
    prompt: PromptName = None
    kind: Literal["prompt", "prefix"] = "prompt"  # vectors before the text, or keys and values in every layer
    virtual_tokens: int = Field(20, ge=1)
    optimiser: PromptOptimiser = PromptOptimiser()
    seed: int = Field(0, ge=0)
    dtype: str | None = None
    device: str | None = None

    @field_validator("model", mode="before")
    @classmethod
    def _a_model_may_be_a_name(cls, model: Any) -> Any:
        return {"model": model} if isinstance(model, str) else model


def train_soft_prompt(
    settings: SoftPromptSettings, output: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """Train a soft prompt by transformers' `Trainer` and write it as a peft adapter.

    The loss is that of `RoMATrainer` without a manifold: the mean over questions of the mean negative log-likelihood of
    the right answer's tokens.

    Returns:
        ``output``, which `load_soft_prompt` reads.

    Raises:
        OutputExistsError: ``output`` holds something already.
        SettingsError: peft is missing.
        DataError: questions of ``data.dev`` or ``data.evaluation`` stand among those to be learned, by their texts.
    """
    _peft()  # before anything is loaded
    told = progress or Silent()
    refuse_existing(output, overwrite=overwrite)
    refuse_same_texts(read_sources(settings.data.train)[: settings.data.limit], judging_sets(settings.data))
    tokenizer = load_tokenizer(settings.model)
    model = load_model(settings.model, dtype=settings.dtype, device=settings.device)
    format_ = PromptFormat(tokenizer, settings.prompt)
    _, encoded = encode_sources(settings.data.train, format_, model, settings.data.max_length, settings.data.limit)
    torch.manual_seed(settings.seed)
    adapted = with_soft_prompt(model, settings.kind, settings.virtual_tokens)
    with new_folder(output, overwrite=overwrite) as folder, TemporaryDirectory() as elsewhere:
        _trainer(adapted, settings, encoded, padding_id(tokenizer), elsewhere, told).train()
        adapted.save_pretrained(str(folder))
        tokenizer.save_pretrained(folder)
    return Path(output)


def with_soft_prompt(model: PreTrainedModel, kind: Literal["prompt", "prefix"], virtual_tokens: int) -> Any:
    """A ``peft.PeftModel`` over ``model`` with a new soft prompt, the only thing that can be trained."""
    peft = _peft()
    kinds = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}
    config = kinds[kind](task_type="CAUSAL_LM", num_virtual_tokens=virtual_tokens)
    with _without_deprecations():
        return peft.get_peft_model(model, config)


def load_soft_prompt(model: PreTrainedModel, folder: str | Path) -> Any:
    """What `train_soft_prompt` wrote, over the model it was trained for."""
    with _without_deprecations():
        return _peft().PeftModel.from_pretrained(model, str(folder)).eval()


@torch.no_grad()
def answered_correctly(model: Any, encoded: Sequence[Encoded], *, pad_id: int, batch_size: int = 32) -> Tensor:
    """Which questions a model answers correctly, by the rule of `fusionroute.moe.asking`; bool ``[n]``.

    In plain forward passes, for a model whose text does not begin at its first position.
    """
    alone = [
        Encoded(each.prompt, (answer,), 0) for each in encoded for answer in each.answers
    ]  # every option is a question
    log_likelihood, is_greedy = [], []
    for start in range(0, len(alone), batch_size):
        batch = {
            name: each.to(model.device) for name, each in pad_right(alone[start : start + batch_size], pad_id).items()
        }
        labels = batch.pop("labels")
        columns = answer_columns(labels)
        logits, labels = model(**batch, use_cache=False, logits_to_keep=columns).logits, labels[:, columns]
        is_answer = labels.ne(IGNORED)
        log_likelihood += (-answer_loss(logits, labels) * is_answer.sum(1)).tolist()
        is_greedy += ((logits.argmax(-1) == labels) | ~is_answer).all(1).tolist()
    correct, at = [], 0
    for each in encoded:
        scores = log_likelihood[at : at + len(each.answers)]
        is_right = is_greedy[at] if len(scores) == 1 else scores.index(max(scores)) == each.right
        correct.append(is_right)
        at += len(scores)
    return torch.tensor(correct)


def _trainer(
    model: Any, settings: SoftPromptSettings, encoded: Sequence[Encoded], pad_id: int, folder: str, progress: Progress
) -> Trainer:
    arguments = TrainingArguments(
        output_dir=folder,
        **settings.optimiser.arguments(),
        save_strategy="no",
        remove_unused_columns=False,
        report_to="none",
        seed=settings.seed,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=model.device.type != "cpu",
        disable_tqdm=True,
        use_cache=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(len(encoded)),
        data_collator=lambda rows: _batch([encoded[row] for row in rows], pad_id),
        compute_loss_func=_loss,
        callbacks=[ReportSteps(f"{settings.kind} tuning", progress)],
    )
    trainer.loss_is_scaled_for_ga = False  # a mean per batch: Trainer divides by the batches of a step
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    return trainer


def _batch(questions: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    batch = pad_right(questions, pad_id)
    return {**batch, "logits_to_keep": answer_columns(batch["labels"])}


def _loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    loss = answer_loss(outputs.logits, labels[:, answer_columns(labels)]).mean()
    if not torch.isfinite(loss):
        raise ModelOutputError("the loss of the soft prompt is not finite; lower the learning rate, or use float32")
    return loss


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Peft 0.21 asks by an old name, which transformers 5.23 deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise SettingsError("soft prompts need peft: pip install 'fusionroute[peft]'") from error
    return peft
