"""The stages of a run, each on what the earlier ones left in its folder; each picks up what it left itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PrinterCallback
from transformers.trainer_callback import ProgressCallback

from fusionroute.models.adapters import add_lora
from fusionroute.models.loading import Loaded, ModelReference, load_model, load_tokenizer, resolve_dtype, save_model
from fusionroute.models.prompt import PromptFormat
from fusionroute.models.router import Router
from fusionroute.models.team import ROUTER_FOLDER, ExpertEntry, TeamFile, TeamModels, write_team
from fusionroute.models.vocabulary import ROUTER, eos_ids
from fusionroute.output import new_folder
from fusionroute.progress import Progress
from fusionroute.training.arguments import cdpo_config, sft_config
from fusionroute.training.data.examples import prepare
from fusionroute.training.data.preferences import prepare_pairs
from fusionroute.training.pairs.make import make_pairs
from fusionroute.training.pairs.writer import team_writer
from fusionroute.training.planning.precheck import Basis, check_models_fit, load_config, training_length
from fusionroute.training.processes import join_processes, own_device
from fusionroute.training.run_folder import (
    CDPO_CHECKPOINTS,
    MODEL_FOLDER,
    PAIR_SCORES_FOLDER,
    PAIRS_FILE,
    SCORES_FOLDER,
    SFT_CHECKPOINTS,
    SFT_FOLDER,
    last_checkpoint,
)
from fusionroute.training.scoring.scores import load_scores, score
from fusionroute.training.settings import TrainSettings
from fusionroute.training.trainers.cdpo import CDPOTrainer, Mixture
from fusionroute.training.trainers.live import LiveExperts
from fusionroute.training.trainers.reporting import ReportSteps
from fusionroute.training.trainers.sft import SFTTrainer


def score_examples(settings: TrainSettings, folder: Path, progress: Progress) -> None:
    """What each expert says of ``data.train``."""
    basis = check_models_fit(settings.router.reference, settings.experts)
    dataset, report = prepare(
        settings.data.train,
        PromptFormat(basis.tokenizer, settings.prompt),
        training_length(basis, settings.data.max_length),
        all_tokens=settings.data.all_tokens,
        limit=settings.data.limit,
        draw_seed=settings.draw_seed,
        exclude=settings.data.exclude,
    )
    progress.finish(str(report))
    _score(settings, basis, dataset, _scored_experts(settings), folder / SCORES_FOLDER, progress)


def score_pairs(settings: TrainSettings, folder: Path, progress: Progress) -> None:
    """What each expert says of the preference pairs, and the router of stage 1, which is the reference of Eq. (3)."""
    basis = check_models_fit(settings.router.reference, settings.experts)
    dataset, report = prepare_pairs(
        settings.data.pairs or folder / PAIRS_FILE,
        PromptFormat(basis.tokenizer, settings.prompt),
        training_length(basis, settings.data.max_length),
        limit=settings.data.pairs_limit,
        draw_seed=settings.draw_seed,
        exclude=settings.data.exclude,
    )
    progress.finish(str(report))
    reference = ModelReference(model=str(folder / SFT_FOLDER / ROUTER_FOLDER), dtype=settings.router.dtype)
    models = {**_scored_experts(settings), ROUTER: reference}
    _score(settings, basis, dataset, models, folder / PAIR_SCORES_FOLDER, progress)


def train_sft(settings: TrainSettings, folder: Path, progress: Progress) -> None:
    """Stage 1, on the scores of `score_examples`; ends in a team, of its own folder if a second stage follows."""
    names = _names(settings)
    scored = load_scores(folder / SCORES_FOLDER, names)
    tokenizer = load_tokenizer(settings.router.reference)
    router = new_router(settings, tokenizer)
    arguments = sft_config(settings, folder / SFT_CHECKPOINTS)
    needs_experts = bool(names) and arguments.aggregation == "renormalised"
    trainer = SFTTrainer(
        router,
        arguments,
        scored,
        experts=names,
        live=_live(settings, arguments.device) if needs_experts else None,
        callbacks=[ReportSteps("train router", progress)],
    )
    if settings.sft.gradient_checkpointing:
        router.activation_checkpointing_enable()
    _run(trainer, folder / SFT_CHECKPOINTS)
    if settings.cdpo is None:
        _finish(settings, trainer, tokenizer, folder, progress)
    else:
        _write_stage_one(settings, trainer, tokenizer, folder / SFT_FOLDER)


def make_team_pairs(settings: TrainSettings, folder: Path, progress: Progress) -> None:
    """Preference pairs of the mistakes that the team of stage 1 makes. One process writes them, the others wait."""
    assert settings.pairs is not None
    processes = join_processes(settings.device)
    if processes.is_main_process:
        device = own_device(processes, settings.device)
        team = TeamModels.from_pretrained(folder / SFT_FOLDER, dtype=settings.dtype, device=device)
        make_pairs(team_writer(team), settings.pairs, folder / PAIRS_FILE, device=device, progress=progress)
    processes.wait_for_everyone()


def train_cdpo(settings: TrainSettings, folder: Path, progress: Progress) -> None:
    """Stage 2, on the router of `train_sft` and the scores of `score_pairs`."""
    stage, names = settings.cdpo, _names(settings)
    assert stage is not None
    pairs = load_scores(folder / PAIR_SCORES_FOLDER, [*names, ROUTER])
    examples = load_scores(folder / SCORES_FOLDER, names)
    wanted = min(len(pairs) // 2, len(examples)) if stage.sft_examples is None else stage.sft_examples
    tokenizer = load_tokenizer(settings.router.reference)
    router = Router.from_pretrained(folder / SFT_FOLDER / ROUTER_FOLDER, dtype=settings.router.dtype, device="cpu")
    arguments = cdpo_config(settings, stage, folder / CDPO_CHECKPOINTS)
    needs_experts = bool(names) and (arguments.form == "normalised" or arguments.aggregation == "renormalised")
    trainer = CDPOTrainer(
        router,
        arguments,
        Mixture(examples, pairs, wanted, settings.seed),
        experts=names,
        live=_live(settings, arguments.device) if needs_experts else None,
        callbacks=[ReportSteps("preferences", progress)],
    )
    if stage.gradient_checkpointing:
        router.activation_checkpointing_enable()
    _run(trainer, folder / CDPO_CHECKPOINTS)
    _finish(settings, trainer, tokenizer, folder, progress)


def new_router(settings: TrainSettings, tokenizer: PreTrainedTokenizerBase) -> Router:
    """The router before training; the seed decides its head."""
    wanted, lora = settings.router, settings.router.lora
    # An adapter as a start is merged into its base: training all weights means all of them
    lm = load_model(wanted.reference, dtype=wanted.dtype, device=settings.device, merge_adapter=lora is None)
    ends = eos_ids(lm)
    if lm.generation_config is not None and tokenizer.eos_token_id not in ends:
        # Answers are taught to end with the tokenizer's EOS, so generation must know that it is an end
        lm.generation_config.eos_token_id = [*sorted(ends), tokenizer.eos_token_id]
    torch.manual_seed(settings.seed)
    head_size = len(settings.experts) if settings.makes_a_team else 1  # the baseline's is not used
    if lora is not None:
        lm = add_lora(lm, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets)
    return Router(lm, head_size, bias=settings.router.head_bias)


def team_file(settings: TrainSettings) -> TeamFile:
    """Experts by reference; local folders with their full path, for the team may be used from elsewhere."""
    entries = [ExpertEntry(name=n, model=_absolute(r), revision=r.revision) for n, r in settings.experts.items()]
    return TeamFile(experts=tuple(entries), prompt=settings.prompt)


def _names(settings: TrainSettings) -> Sequence[str]:
    """The experts that the losses know of: none for the fine-tuned baseline."""
    return list(_scored_experts(settings))


def _scored_experts(settings: TrainSettings) -> dict[str, ModelReference]:
    return dict(settings.experts) if settings.makes_a_team else {}


def _score(
    settings: TrainSettings,
    basis: Basis,
    dataset: Dataset,
    models: dict[str, ModelReference],
    folder: Path,
    progress: Progress,
) -> None:
    score(
        dataset,
        models,
        basis.tokenizer,
        folder,
        batch_size=settings.score.batch_size,
        examples_per_file=settings.score.examples_per_file,
        dtype=settings.dtype,
        device=settings.device,
        progress=progress,
    )


def _live(settings: TrainSettings, device: torch.device) -> LiveExperts:
    loaded: Loaded = {}  # adapters over one base share it
    return LiveExperts(
        [
            load_model(reference, dtype=settings.dtype, device=str(device), loaded=loaded)
            for reference in settings.experts.values()
        ]
    )


def _run(trainer: SFTTrainer, checkpoints: Path) -> None:
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    resume_from = last_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)


def _write_stage_one(
    settings: TrainSettings, trainer: SFTTrainer, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """In the precision of training: stage 2 starts from these very weights and is measured against them."""
    router, gathered = _trained(trainer)
    if trainer.accelerator.is_main_process:
        if settings.makes_a_team:
            write_team(folder, router, tokenizer, team_file(settings), state_dict=gathered)
        else:
            with new_folder(folder / ROUTER_FOLDER, overwrite=True) as target:
                router.save_pretrained(target, state_dict=gathered)
                tokenizer.save_pretrained(target)
    trainer.accelerator.wait_for_everyone()


def _finish(
    settings: TrainSettings,
    trainer: SFTTrainer,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    progress: Progress,
) -> None:
    router, gathered = _trained(trainer, _final_dtype(settings))
    if trainer.accelerator.is_main_process:
        if settings.makes_a_team:
            write_team(folder, router, tokenizer, team_file(settings), state_dict=gathered)
            progress.finish(f"the team is ready in {folder}")
        else:
            with new_folder(folder / MODEL_FOLDER, overwrite=True) as target:
                save_model(router.lm, target, gathered and _of_the_lm(gathered))
                tokenizer.save_pretrained(target)
            progress.finish(f"the model is ready in {folder / MODEL_FOLDER}")
    trainer.accelerator.wait_for_everyone()


def _trained(trainer: SFTTrainer, dtype: torch.dtype | None = None) -> tuple[Router, dict[str, Tensor] | None]:
    """The router, and its weights where they are spread over the processes, all of which must ask for them.

    DeepSpeed's stay in the precision of training: it owns the live ones.
    """
    router: Any = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_deepspeed_enabled:
        return router, trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if dtype is not None:
        router = router.to(dtype)
    return router, trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None


def _of_the_lm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("lm."): weight for name, weight in weights.items() if name.startswith("lm.")}


def _absolute(reference: ModelReference) -> str:
    folder = Path(reference.model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else reference.model


def _final_dtype(settings: TrainSettings) -> torch.dtype:
    """What the router is saved in: as asked, else as the model it started from; it trained in float32 or so."""
    own = load_config(settings.router.reference).dtype
    return resolve_dtype(settings.dtype) or (own if isinstance(own, torch.dtype) else torch.float32)
