"""A team file's stages in transformers' words."""

from pathlib import Path
from typing import Any

from fusionroute.training.processes import runs_on_cpu
from fusionroute.training.settings import CDPOSettings, StageSettings, TrainSettings
from fusionroute.training.trainers.cdpo import CDPOConfig
from fusionroute.training.trainers.sft import SFTConfig


def sft_config(settings: TrainSettings, folder: Path) -> SFTConfig:
    """Stage 1; ``folder`` gets the checkpoints."""
    return SFTConfig(**_common(settings, settings.sft, folder))


def cdpo_config(settings: TrainSettings, stage: CDPOSettings, folder: Path) -> CDPOConfig:
    """Stage 2; ``folder`` gets the checkpoints."""
    return CDPOConfig(beta=stage.beta, form=stage.form, **_common(settings, stage, folder))


def _common(settings: TrainSettings, stage: StageSettings, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        **stage.arguments(),
        "routing_weight": settings.routing.weight if settings.makes_a_team else 0.0,
        "aggregation": settings.routing.aggregation if settings.makes_a_team else "expected_nll",
        "positions": settings.routing.positions,
        "group_by_length": stage.group_by_length,
        "bf16": stage.bf16,
        "seed": settings.seed,
        "use_cpu": runs_on_cpu(settings.device),
        "dataloader_pin_memory": not runs_on_cpu(settings.device),
        "disable_tqdm": True,
    }
