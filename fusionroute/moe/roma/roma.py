"""Routing Manifold Alignment (arXiv 2511.07419): from a settings file to a checkpoint in which only routers changed."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from fusionroute.environment import versions
from fusionroute.errors import OutputExistsError, SettingsError
from fusionroute.models.gates import Gates
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.asking import ask
from fusionroute.moe.embedders import embedder
from fusionroute.moe.neighbours import Neighbours
from fusionroute.moe.pathways.pathways import Pathways, record
from fusionroute.moe.pathways.recording import questions_hash
from fusionroute.moe.questions.leakage import Overlap, overlap, refuse_overlap
from fusionroute.moe.questions.questions import Encoded, Question
from fusionroute.moe.roma.batches import Targets
from fusionroute.moe.roma.data import encode_sources, judging_sets, padding_id, read_sources, refuse_same_texts
from fusionroute.moe.roma.folder import (
    CHECKPOINTS,
    MODEL_FOLDER,
    ORACLE_FOLDER,
    PATHWAYS_FOLDER,
    POINTS_FOLDER,
    REPORT_FILE,
    last_checkpoint,
    open_run,
)
from fusionroute.moe.roma.router_delta import (
    DELTA_FILE,
    BaseFiles,
    apply_delta,
    load_delta,
    refuse_other_base,
    save_delta,
    tensors_on_disk,
    write_tuned,
)
from fusionroute.moe.roma.settings import RoMASettings
from fusionroute.moe.roma.targets import graph, manifold_targets, oracle_targets
from fusionroute.moe.roma.trainer import RoMAArguments, RoMATrainer
from fusionroute.moe.roma.watching import ReportSteps
from fusionroute.output import write_json
from fusionroute.progress import Progress, Silent


@dataclass
class Prepared:
    """All that training needs, from the untouched model. ``gates`` are the ones that will be trained.

    Attributes:
        dev: questions that choose λ; may be none.
        found: the neighbourhood graph; None for oracle targets.
        overlaps: what was found and allowed, in words.
    """

    settings: RoMASettings
    gates: Gates
    tokenizer: PreTrainedTokenizerBase
    base: BaseFiles
    encoded: list[Encoded]
    dev: list[Question]
    dev_encoded: list[Encoded]
    pathways: Pathways
    targets: Targets
    found: Neighbours | None
    overlaps: list[str]

    @property
    def pad_id(self) -> int:
        return padding_id(self.tokenizer)

    @property
    def disk_names(self) -> list[str]:
        """Of each gate in turn, the name of its weight in the checkpoint."""
        return [next(iter(tensors_on_disk(self.gates.model, [gate]))) for gate in self.gates.gates]


def train_roma(
    settings: RoMASettings, output: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """Record pathways, build the graph, train the routers, save; the same call continues what was interrupted.

    Args:
        output: gets ``settings.yaml``, ``pathways/``, ``checkpoints/``, the routers as ``router_delta.safetensors``,
            a normal checkpoint in ``model/`` (unless ``save`` is delta), and ``roma.json``, the report.
        overwrite: start anew, removing what a run has left in ``output`` (never anything else).

    Returns:
        The checkpoint's folder, or the delta's file.

    Raises:
        OutputExistsError: ``output`` holds something else, or a run of other settings or of other questions.
        SettingsError, DataError, UnsupportedModelError, CheckpointError, ModelOutputError: before training, wherever
            possible: unknown layers, overlapping sets, no question answered correctly, logits that overflow.
        KeyboardInterrupt: after Ctrl-C, with everything kept that is needed to continue.
    """
    folder, told = Path(output), progress or Silent()
    open_run(folder, settings, overwrite=overwrite)
    if (folder / REPORT_FILE).is_file():
        _refuse_other_inputs(settings, folder)
        if not result_of(folder, settings).exists():  # only the routers were saved before
            apply_delta(settings.model, folder, folder / MODEL_FOLDER)
        told.finish(f"{folder} is already finished; nothing to do")
        return result_of(folder, settings)
    prepared = prepare(settings, folder, told)
    before = dev_correct(prepared)
    trainer = tune(prepared, settings.weight, folder / CHECKPOINTS, told)
    write_result(prepared, folder)
    _round_as_saved(prepared)
    write_json(folder / REPORT_FILE, report(prepared, trainer, settings.weight, before, dev_correct(prepared)))
    told.finish(f"routers tuned on {len(prepared.encoded):,} questions, in {result_of(folder, settings)}")
    return result_of(folder, settings)


def prepare(settings: RoMASettings, folder: Path, progress: Progress) -> Prepared:
    """What does not depend on λ: questions, leakage check, model, pathways, targets. Raises as `train_roma` does."""
    _one_process()
    data = settings.data
    train, sets = read_sources(data.train), judging_sets(data)
    if not settings.leakage.allow_overlap:
        refuse_same_texts(train[: data.limit], sets)  # costs nothing, so before a model is loaded
    tokenizer = load_tokenizer(settings.model)
    base = BaseFiles(settings.model)
    model = load_model(settings.model, dtype=settings.dtype, device=settings.device).requires_grad_(False)
    gates = Gates(model, settings.layers)
    base.require(tensors_on_disk(model, gates.gates))
    prompt_format = PromptFormat(tokenizer, settings.prompt)
    questions, encoded = encode_sources(data.train, prompt_format, model, data.max_length, data.limit)
    dev_questions, dev_encoded = (
        encode_sources(data.dev, prompt_format, model, data.max_length) if data.dev else ([], [])
    )
    frozen = embedder(
        settings.embedder, gates, prompt_format=prompt_format, batch_size=settings.batch_size, device=settings.device
    )
    pathways = record(
        gates,
        questions,
        folder / PATHWAYS_FOLDER,
        prompt_format=prompt_format,
        embedder=frozen,
        batch_size=settings.batch_size,
        # of a recording of ours for other settings; what routers were tuned by already is refused if it differs
        overwrite=not any((folder / begun).exists() for begun in (CHECKPOINTS, POINTS_FOLDER)),
        progress=progress,
    )
    overlaps = _check_meanings(pathways, sets, frozen, settings)
    for each in overlaps:
        progress.finish(f"overlap allowed: {each}")
    found = None
    if settings.target == "oracle":
        targets = oracle_targets(settings, pathways, gates, encoded, folder / ORACLE_FOLDER, progress)
    else:
        found = graph(pathways, settings.neighbours, settings.seed)
        _tell_of_empty(found, settings, progress)
        targets = manifold_targets(settings, found, pathways, gates, encoded, padding_id(tokenizer))
    return Prepared(
        settings, gates, tokenizer, base, encoded, dev_questions, dev_encoded, pathways, targets, found, overlaps
    )  # fmt: skip


def tune(prepared: Prepared, weight: float, checkpoints: Path, progress: Progress) -> RoMATrainer:
    """Train the gates of ``prepared`` with this λ, or go on from the last checkpoint; they keep what they learned."""
    settings = prepared.settings
    if settings.optimiser.gradient_checkpointing:
        prepared.gates.model.activation_checkpointing_enable({"use_reentrant": False})
    trainer = RoMATrainer(
        prepared.gates,
        _arguments(settings, weight, checkpoints, prepared.gates.model.device),
        prepared.encoded,
        prepared.targets,
        pad_id=prepared.pad_id,
        where=settings.tokens.where,
        count=settings.tokens.count,
        callbacks=[ReportSteps(f"tune routers, λ = {weight:g}", progress)],
    )
    last = last_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    prepared.gates.model.eval()
    return trainer


def write_result(prepared: Prepared, folder: Path) -> None:
    """The routers as a delta, and the whole checkpoint unless the settings say otherwise."""
    tensors = tensors_on_disk(prepared.gates.model, prepared.gates.gates)
    save_delta(prepared.base, tensors, folder)
    if prepared.settings.save == "model":
        write_tuned(prepared.base, tensors, folder / MODEL_FOLDER, overwrite=True)


@torch.no_grad()
def _round_as_saved(prepared: Prepared) -> None:
    """Gates as the checkpoint has them, where training was in another dtype: what is measured is what is used."""
    for name, weight in zip(prepared.disk_names, prepared.gates.parameters(), strict=True):
        weight.copy_(prepared.base.rounded({name: weight})[name])


def dev_correct(prepared: Prepared) -> list[bool]:
    """Which development questions the model answers correctly as it is now; none, where there are none."""
    if not prepared.dev:
        return []
    said = ask(prepared.gates, prepared.dev_encoded, batch_size=prepared.settings.batch_size, pad_id=prepared.pad_id)
    return [bool(each) for each in said.correct]


def report(
    prepared: Prepared, trainer: RoMATrainer, weight: float, before: Sequence[bool], after: Sequence[bool]
) -> dict[str, Any]:
    """What a run was, in numbers."""
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {
        **facts(prepared),
        "weight": weight,
        "steps": trainer.state.global_step,
        "last_log": logs[-1] if logs else None,
        "dev": {"n": len(after), "correct_before": sum(before), "correct_after": sum(after)} if after else None,
    }


def facts(prepared: Prepared) -> dict[str, Any]:
    """What is the same for every λ, in numbers."""
    trained = sum(each.numel() for each in prepared.gates.parameters())
    found, pathways = prepared.found, prepared.pathways
    return {
        "fusionroute": versions()["fusionroute"],
        "model": prepared.settings.model.model,
        "layers": [gate.name for gate in prepared.gates.gates],
        "trained_parameters": trained,
        "trained_share": trained / prepared.gates.model.num_parameters(),
        "questions": len(prepared.encoded),
        "answered_correctly": int(pathways.correct.sum()),
        "target": prepared.settings.target,
        "sigma": None if found is None or found.sigma != found.sigma else found.sigma,
        "empty_neighbourhoods": None if found is None else found.empty,
        "overlaps": prepared.overlaps,
        "data": data_hashes(prepared.settings),
    }


def data_hashes(settings: RoMASettings) -> dict[str, str]:
    """What the files of questions hold now, before any are left out."""
    data = settings.data
    sets = {"train": read_sources(data.train, data.limit), "dev": read_sources(data.dev)}
    return {name: questions_hash(questions) for name, questions in sets.items()}


def result_of(folder: Path, settings: RoMASettings) -> Path:
    """What a run leaves for use: the checkpoint's folder, or the delta's file."""
    return folder / (MODEL_FOLDER if settings.save == "model" else DELTA_FILE)


def _refuse_other_inputs(settings: RoMASettings, folder: Path) -> None:
    """Raise `OutputExistsError` or `CheckpointError` where files changed under a finished run of the same names."""
    before = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8")).get("data")
    others = [name for name, now in data_hashes(settings).items() if before is not None and before.get(name) != now]
    if others:
        named = " and ".join(f"data.{name}" for name in others)
        raise OutputExistsError(
            f"{folder} is a finished run on other questions: {named} changed since; "
            "choose another output folder, or ask for it to be overwritten"
        )
    refuse_other_base(BaseFiles(settings.model), folder, *load_delta(folder))


def _tell_of_empty(found: Neighbours, settings: RoMASettings, progress: Progress) -> None:
    if found.empty:
        epsilon = settings.neighbours.epsilon
        of = "" if epsilon is None else f" at least {epsilon:g} similar (ε)"
        progress.finish(
            f"{found.empty:,} of {len(found.weight):,} questions have no neighbour{of}, so their routing is not pulled"
        )


def _arguments(settings: RoMASettings, weight: float, folder: Path, device: torch.device) -> RoMAArguments:
    on_cpu = device.type == "cpu"
    arguments = RoMAArguments(
        output_dir=str(folder),
        weight=weight,
        **settings.optimiser.arguments(),
        seed=settings.seed,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        disable_tqdm=True,
    )
    if (arguments.device.type, arguments.device.index or 0) != (device.type, device.index or 0):
        raise SettingsError(
            f"routers are tuned on {arguments.device}, and the model is on {device}; leave device out "
            "and choose a card by CUDA_VISIBLE_DEVICES"
        )
    return arguments


def _one_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError("routers are tuned by one process: they are small; start it without a launcher")


def _check_meanings(
    pathways: Pathways, sets: Mapping[str, Sequence[Question]], frozen: Any, settings: RoMASettings
) -> list[str]:
    """Near-duplicates too. Returns in words what was found, where it is allowed."""
    found: list[str] = []
    for name, questions in sets.items():
        if not questions:
            continue
        theirs = frozen.embed([question.prompt for question in questions])
        common: Overlap = overlap(
            pathways.questions,
            questions,
            embeddings=(pathways.embeddings, theirs),
            threshold=settings.leakage.threshold,
            centre=pathways.centre,
        )
        if not settings.leakage.allow_overlap:
            refuse_overlap(common, pathways.questions, name)
        found += [f"{name}: {common}"] if common else []
    return found
