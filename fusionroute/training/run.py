"""From a team file to a team: prepare data, score, train the router, save. Each step picks up what it left behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ProgressCallback
from transformers.utils import logging

from fusionroute.models.loading import ModelReference, load_model, load_tokenizer, resolve_dtype
from fusionroute.models.prompt import PromptFormat
from fusionroute.models.router import Router
from fusionroute.models.team import ExpertEntry, TeamFile, write_team
from fusionroute.models.vocabulary import eos_ids
from fusionroute.training.data import prepare
from fusionroute.training.precheck import check_models_fit, load_config, training_length
from fusionroute.training.progress import Progress, Silent
from fusionroute.training.run_folder import (
    CHECKPOINTS_FOLDER,
    SCORES_FOLDER,
    clear_run,
    is_finished,
    last_checkpoint,
    open_run,
)
from fusionroute.training.scores import load_scores
from fusionroute.training.scores import score as score_experts
from fusionroute.training.settings import TrainSettings
from fusionroute.training.sft import SFTConfig, SFTTrainer


def train(
    settings: TrainSettings, output: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """Score the experts, train the router, save the team; the same call continues what was interrupted.

    Args:
        output: gets ``settings.yaml``, ``scores/``, ``checkpoints/``, then ``router/``, ``README.md``, ``team.json``.
        overwrite: start anew, removing what a run has left in ``output`` (never anything else).

    Returns:
        ``output``, now a team folder.

    Raises:
        OutputExistsError: ``output`` holds something else, or a run of other settings.
        CheckpointError, VocabularyError, SettingsError, DataError: before anything expensive, wherever possible.
        KeyboardInterrupt: after Ctrl-C, with everything kept that is needed to continue.
    """
    progress = progress or Silent()
    if overwrite:
        clear_run(output)
    output = open_run(output, settings)
    if not _finished_before(output, progress):
        with _without_bars():
            _score(settings, output, progress)
            _sft(settings, output, progress)
    return output


def score(
    settings: TrainSettings, output: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """The first half of `train`. Returns the folder of the scores; arguments and errors as there."""
    if overwrite:
        clear_run(output)
    output = open_run(output, settings)
    with _without_bars():
        _score(settings, output, progress or Silent())
    return output / SCORES_FOLDER


def sft(
    settings: TrainSettings, output: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """The second half of `train`, on the scores in ``output``; ``overwrite`` trains anew but keeps those scores."""
    progress = progress or Silent()
    if overwrite:
        clear_run(output, keep_scores=True)
    output = open_run(output, settings)
    if not _finished_before(output, progress):
        with _without_bars():
            _sft(settings, output, progress)
    return output


def _finished_before(output: Path, progress: Progress) -> bool:
    if is_finished(output):
        progress.finish(f"{output} is already finished; nothing to do")
    return is_finished(output)


def _score(settings: TrainSettings, output: Path, progress: Progress) -> None:
    basis = check_models_fit(settings.router.reference, settings.experts)
    dataset, report = prepare(
        settings.data.train,
        PromptFormat(basis.tokenizer, settings.prompt),
        training_length(basis, settings.data.max_length),
        all_tokens=settings.data.all_tokens,
        limit=settings.data.limit,
    )
    progress.finish(str(report))
    score_experts(
        dataset,
        settings.experts,
        basis.tokenizer,
        output / SCORES_FOLDER,
        batch_size=settings.score.batch_size,
        dtype=settings.dtype,
        device=settings.device,
        progress=progress,
    )


def _sft(settings: TrainSettings, output: Path, progress: Progress) -> None:
    scored = load_scores(output / SCORES_FOLDER, list(settings.experts))
    tokenizer = load_tokenizer(settings.router.reference)
    router = new_router(settings, tokenizer)
    if settings.sft.gradient_checkpointing:
        enable_checkpointing(router)
    checkpoints = output / CHECKPOINTS_FOLDER
    trainer = SFTTrainer(router, sft_config(settings, checkpoints), scored, callbacks=[ReportSteps(progress)])
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    resume_from = last_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    write_team(output, router.to(_final_dtype(settings)), tokenizer, team_file(settings))
    progress.finish(f"the team is ready in {output}")


def new_router(settings: TrainSettings, tokenizer: PreTrainedTokenizerBase) -> Router:
    """The router before training; the seed decides its head."""
    lm = load_model(settings.router.reference, dtype=settings.router.dtype, device=settings.device)
    ends = eos_ids(lm)
    if lm.generation_config is not None and tokenizer.eos_token_id not in ends:
        # Answers are taught to end with the tokenizer's EOS, so generation must know that it is an end
        lm.generation_config.eos_token_id = [*sorted(ends), tokenizer.eos_token_id]
    torch.manual_seed(settings.seed)
    return Router(lm, len(settings.experts), bias=settings.router.head_bias)


def enable_checkpointing(router: Router) -> None:
    """Recompute activations in the backward pass instead of keeping them; the result is the same."""
    # Renamed within transformers 5; the old name warns where the new one exists
    enable = getattr(router.lm, "activation_checkpointing_enable", None) or router.lm.gradient_checkpointing_enable
    enable()


def sft_config(settings: TrainSettings, folder: Path) -> SFTConfig:
    """The ``sft`` part of a team file in transformers' words."""
    wanted = settings.sft
    return SFTConfig(
        output_dir=str(folder),
        learning_rate=wanted.learning_rate,
        num_train_epochs=wanted.epochs,
        per_device_train_batch_size=wanted.batch_size,
        gradient_accumulation_steps=wanted.accumulation,
        routing_weight=wanted.routing_weight,
        warmup_steps=wanted.warmup_ratio,
        lr_scheduler_type=wanted.scheduler,
        weight_decay=wanted.weight_decay,
        max_grad_norm=wanted.max_grad_norm,
        max_steps=wanted.max_steps or -1,
        save_steps=wanted.save_steps,
        save_total_limit=1,  # with AdamW's moments a checkpoint is three times the router
        logging_steps=wanted.logging_steps,
        bf16=wanted.bf16,
        seed=settings.seed,
        use_cpu=settings.device == "cpu",
        disable_tqdm=True,
        dataloader_pin_memory=torch.accelerator.is_available() and settings.device != "cpu",
    )


def team_file(settings: TrainSettings) -> TeamFile:
    """Experts by reference; local folders with their full path, for the team may be used from elsewhere."""
    entries = [ExpertEntry(name=n, model=_absolute(r), revision=r.revision) for n, r in settings.experts.items()]
    return TeamFile(experts=tuple(entries), prompt=settings.prompt)


def _absolute(reference: ModelReference) -> str:
    folder = Path(reference.model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else reference.model


def _final_dtype(settings: TrainSettings) -> torch.dtype:
    """What the router is saved in: as asked, else as the model it started from; it trained in float32 or so."""
    own = load_config(settings.router.reference).dtype
    return resolve_dtype(settings.dtype) or (own if isinstance(own, torch.dtype) else torch.float32)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Transformers draws a bar whenever it reads or writes weights; ours is the only one here."""
    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()


class ReportSteps(TrainerCallback):
    """Trainer's steps, told to a `Progress`."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.note = ""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress.start("train router", state.max_steps)
        if state.global_step:
            self.progress.advance(state.global_step, "resumed")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress.advance(1, self.note)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            self.note = f"loss {logs['loss']:.3f}, right expert {logs.get('routing_accuracy', 0.0):.0%}"

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress.finish(f"router: {state.global_step} of {state.max_steps} steps; {self.note or 'no loss logged'}")
