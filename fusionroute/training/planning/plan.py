"""What a run would do and need, before it does anything: models, data, steps, memory, time. Writes nothing."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import parse_flag_from_env

from fusionroute.engine.memory import free_bytes
from fusionroute.models.loading import default_device
from fusionroute.models.vocabulary import ROUTER
from fusionroute.progress import Progress, Silent
from fusionroute.training.pairs.judges import make_judge
from fusionroute.training.planning.clock import GIB, Clock
from fusionroute.training.planning.inventory import Inventory, take_inventory
from fusionroute.training.planning.lineup import Planned, line_up, team_sizes
from fusionroute.training.planning.memory import Need, scoring_need, training_need, writing_need
from fusionroute.training.planning.precheck import check_models_fit, training_length
from fusionroute.training.planning.workload import Workload, optimizer_steps, scoring_work, training_work
from fusionroute.training.settings import StageSettings, TrainSettings


@dataclass(frozen=True)
class ModelPlan:
    """A model: ``trainable`` of its ``parameters`` are trained."""

    name: str
    location: str
    parameters: int
    trainable: int
    dtype: str
    vocabulary: int


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        name, what: which, and who reads or writes, or what is learned.
        items: examples, pairs or prompts.
        tokens: in them, without padding; None if still unknown.
        steps: of the optimizer, or batches of each model that reads, over all processes.
        items_per_step: over all processes.
        memory: on one device, at the worst moment.
        seconds: None if not measured.
    """

    name: str
    what: str
    items: int
    tokens: int | None
    steps: int | None
    items_per_step: int | None
    memory: Need
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """A run that could be.

    Attributes:
        free_bytes: of the device now, for one process.
        skipped_probe: why some times are unknown; empty if none is.
    """

    device: str
    processes: int
    free_bytes: int
    max_length: int
    models: tuple[ModelPlan, ...]
    data: tuple[str, ...]
    stages: tuple[StagePlan, ...]
    warnings: tuple[str, ...]
    skipped_probe: str


def plan(
    settings: TrainSettings, *, probe: bool = True, processes: int | None = None, progress: Progress | None = None
) -> Plan:
    """Find out what `train` would do, without doing it: the models first, then the data, then memory and time.

    Args:
        probe: time a batch of the same architectures with two layers of random weights on this device.
        processes: that will train together; None takes those of this launch.

    Raises:
        CheckpointError, VocabularyError, SettingsError, DataError: what `train` would raise, as early as it can be
            known: no data are read before all configs and tokenizers agree, and no weights at all.
    """
    progress = progress or Silent()
    basis = check_models_fit(settings.router.reference, settings.experts)
    max_length = training_length(basis, settings.data.max_length)
    if settings.pairs is not None and settings.pairs.reward_model is None:
        make_judge(settings.pairs)  # what may be misspelt comes before what takes long
    device = torch.device(settings.device or default_device())
    models = line_up(settings, device)
    progress.finish(f"{len(models)} models share {len(basis.tokenizer):,} tokens; examples hold at most {max_length:,}")
    inventory = take_inventory(settings, basis, max_length, progress)
    clock = Clock(settings, device, progress, is_on=probe)
    planner = _Planner(settings, models, inventory, clock, device, processes or int(os.environ.get("WORLD_SIZE", 1)))
    stages = planner.stages()
    return Plan(
        device=str(device),
        processes=planner.processes,
        free_bytes=planner.free,
        max_length=max_length,
        models=tuple(_model_plan(model) for model in models.values()),
        data=inventory.lines,
        stages=stages,
        warnings=tuple(planner.warnings),
        skipped_probe=clock.skipped,
    )


def _model_plan(model: Planned) -> ModelPlan:
    size, dtype = model.size, str(model.dtype).removeprefix("torch.")
    return ModelPlan(model.name, model.location, size.parameters, size.trainable, dtype, size.vocabulary)


class _Planner:
    """The stages one by one, and what there is to warn of."""

    def __init__(
        self,
        settings: TrainSettings,
        models: dict[str, Planned],
        inventory: Inventory,
        clock: Clock,
        device: torch.device,
        processes: int,
    ):
        self.settings, self.inventory, self.clock = settings, inventory, clock
        self.device, self.processes = device, processes
        self.router = models[ROUTER]
        self.experts = [model for name, model in models.items() if name != ROUTER and settings.makes_a_team]
        self.team = list(models.values())
        self.free = free_bytes(device) // (processes if device.type == "cpu" else 1)
        self.warnings: list[str] = []

    def stages(self) -> tuple[StagePlan, ...]:
        found = [self._score(), self._sft()]
        if self.settings.cdpo is not None:
            if self.settings.pairs is not None:
                found.append(self._pairs())
            found += [self._score_pairs(), self._cdpo(self.settings.cdpo)]
        return tuple(found)

    def _score(self) -> StagePlan:
        work = scoring_work(self.inventory.examples, self.settings.score.batch_size)
        return self._reading("score", "experts read", self.experts, work, work.items)

    def _score_pairs(self) -> StagePlan:
        pairs = self.inventory.pairs
        work = scoring_work(pairs.ravel(), self.settings.score.batch_size)
        return self._reading("score pairs", "experts and router", [*self.experts, self.router], work, len(pairs))

    def _reading(self, name: str, what: str, models: Sequence[Planned], work: Workload, items: int) -> StagePlan:
        needs = [scoring_need(model.size, work.rows, work.longest) for model in models]
        need = max(needs, key=lambda need: need.total, default=Need(0))
        help_ = ["a smaller score.batch_size or data.max_length", "dtype: bfloat16"]
        self._warn_if_large(name, need, help_)
        batches = -(-work.batches // self.processes)
        times = [self.clock.reading(model, work) for model in models]
        seconds = None if None in times else sum(time or 0 for time in times) * batches
        per_step = self.settings.score.batch_size * self.processes
        return StagePlan(name, what, items, work.tokens, batches, per_step, need, seconds)

    def _sft(self) -> StagePlan:
        stage, lengths = self.settings.sft, self.inventory.examples
        work = training_work(lengths, np.ones_like(lengths), int(lengths.sum()), stage, self.settings.seed)
        is_live = self.settings.routing.aggregation == "renormalised"
        return self._training("sft", "Eq. (2)", stage, work, is_live)

    def _cdpo(self, stage: StageSettings) -> StagePlan:
        count = self.inventory.mixed(self.settings)
        examples, pairs = self.inventory.examples, self.inventory.pairs
        drawn = np.random.default_rng(self.settings.seed).choice(examples, count, replace=False)
        lengths = np.concatenate([drawn, pairs.max(axis=1)])
        rows = np.repeat([1, 2], [len(drawn), len(pairs)])
        work = training_work(lengths, rows, int(drawn.sum() + pairs.sum()), stage, self.settings.seed)
        needs_all = self.settings.cdpo is not None and self.settings.cdpo.form == "normalised"
        is_live = needs_all or self.settings.routing.aggregation == "renormalised"
        return self._training("cdpo", "Eq. (3)", stage, work, is_live)

    def _training(self, name: str, what: str, stage: StageSettings, work: Workload, is_live: bool) -> StagePlan:
        live = self.experts if is_live else []
        shards = self.processes if _is_sharded() else 1
        need = training_need(
            self.router.size,
            work.rows,
            work.longest,
            bf16=stage.bf16,
            checkpointing=stage.gradient_checkpointing,
            shards=shards,
            live=[model.size for model in live],
        )
        self._warn_if_large(name, need, self._help(name, stage, shards, is_live))
        steps = optimizer_steps(work.items, stage, self.processes)
        per_step = stage.batch_size * stage.accumulation * self.processes
        seconds = self._training_seconds(stage, work, live)
        return StagePlan(
            name, what, work.items, work.tokens, steps, per_step, need, None if seconds is None else seconds * steps
        )

    def _training_seconds(self, stage: StageSettings, work: Workload, live: Sequence[Planned]) -> float | None:
        """Of one step."""
        taken = self.clock.training(self.router, work, stage)
        reading = [self.clock.reading(model, work) for model in live]
        if taken is None or None in reading:
            return None
        return stage.accumulation * (taken.batch + sum(time or 0 for time in reading)) + taken.optimizer

    def _pairs(self) -> StagePlan:
        need = writing_need(team_sizes(self.team, self.settings))
        self._warn_if_large("pairs", need, ["dtype: bfloat16", "experts that are adapters over one base"])
        prompts = len(self.inventory.pairs)
        return StagePlan("pairs", "team writes", prompts, None, None, None, need, None)

    def _help(self, name: str, stage: StageSettings, shards: int, is_live: bool) -> list[str]:
        """What would take less memory and is not done yet."""
        offers = {
            f"{name}.gradient_checkpointing: true": not stage.gradient_checkpointing,
            f"a smaller {name}.batch_size with more accumulation": stage.batch_size > 1,
            "a router.lora": self.settings.router.lora is None,
            "losses that need no experts in memory (expected_nll, printed)": is_live,
            "FSDP over several devices": shards == 1,
            "router.dtype: bfloat16, which loses small steps": self.router.size.width > 2,
        }
        return [offer for offer, is_open in offers.items() if is_open]

    def _warn_if_large(self, name: str, need: Need, help_: Sequence[str]) -> None:
        if need.total > self.free:
            self.warnings.append(
                f"{name} needs about {need.total / GIB:.1f} GiB on {self.device}, which has {self.free / GIB:.1f} GiB "
                f"free for each process; what helps: {', '.join(help_) or 'a larger device'}"
            )


def _is_sharded() -> bool:
    return parse_flag_from_env("ACCELERATE_USE_FSDP") or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
