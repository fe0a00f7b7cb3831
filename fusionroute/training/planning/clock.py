"""Seconds that the stages of a plan take, from probes on the device that will run them."""

from dataclasses import replace

import torch

from fusionroute.engine.memory import free_bytes
from fusionroute.progress import Progress
from fusionroute.training.planning.lineup import Planned
from fusionroute.training.planning.memory import ModelSize, expert_size, scoring_need, training_need
from fusionroute.training.planning.probe import TrainingTime, scoring_seconds, shortened, training_seconds
from fusionroute.training.planning.workload import Workload
from fusionroute.training.settings import StageSettings, TrainSettings

GIB = 2**30


class Clock:
    """Probes each kind of model once; other batches of the same model take time by their padded tokens.

    Args:
        is_on: without it nothing is measured, and nothing is known.

    Attributes:
        skipped: why something was not measured; empty if all was.
    """

    def __init__(self, settings: TrainSettings, device: torch.device, progress: Progress, *, is_on: bool):
        self.settings, self.device, self.progress, self.is_on = settings, device, progress, is_on
        self.skipped = "" if is_on else "not asked for"
        self._reading: dict[tuple[ModelSize, torch.dtype], float | None] = {}

    def reading(self, model: Planned, work: Workload) -> float | None:
        """Seconds of one mean batch of ``work``, read without gradients; None if unknown."""
        if not self.is_on:
            return None
        key = (model.size, model.dtype)
        if key not in self._reading:
            self._reading[key] = self._read(model, work)
        rate = self._reading[key]
        return None if rate is None else rate * work.padded

    def _read(self, model: Planned, work: Workload) -> float | None:
        rows = min(work.rows, max(1, round(work.padded / work.length)))
        small = expert_size(shortened(model.config, 2), model.dtype)
        if not self._fits(scoring_need(small, rows, work.length).total, model.name):
            return None
        self.progress.finish(f"probe: how fast {model.name} reads {rows} x {work.length} tokens")
        return scoring_seconds(model.config, model.dtype, self.device, rows, work.length) / (rows * work.length)

    def training(self, router: Planned, work: Workload, stage: StageSettings) -> TrainingTime | None:
        """Seconds of one mean batch of ``work`` with gradients, and of the optimizer; None if unknown."""
        if not self.is_on:
            return None
        rows = min(work.rows, max(1, round(work.padded / work.length)))
        small = expert_size(shortened(router.config, 2), router.dtype)
        trainable = small.parameters * router.size.trainable // router.size.parameters
        need = training_need(
            replace(small, trainable=trainable),
            rows,
            work.length,
            bf16=stage.bf16,
            checkpointing=stage.gradient_checkpointing,
        )
        if not self._fits(need.total, router.name):
            return None
        self.progress.finish(f"probe: how fast the router learns {rows} x {work.length} tokens")
        taken = training_seconds(
            router.config,
            router.dtype,
            self.device,
            rows,
            work.length,
            self.settings.router,
            max(len(self.settings.experts), 1),
            bf16=stage.bf16,
            checkpointing=stage.gradient_checkpointing,
        )
        return TrainingTime(taken.batch * work.padded / (rows * work.length), taken.optimizer)

    def _fits(self, need: int, name: str) -> bool:
        free = free_bytes(self.device)
        if need > free:
            self.skipped = (
                f"a probe of {name} with two layers needs about {need / GIB:.1f} GiB, and {self.device} has "
                f"{free / GIB:.1f} GiB free"
            )
        return need <= free
