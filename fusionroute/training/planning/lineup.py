"""The models of a run before any of them is loaded: their configs, and what these say of their size."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig

from fusionroute.models.loading import ModelReference, full_model, resolve_dtype
from fusionroute.models.vocabulary import ROUTER
from fusionroute.training.planning.memory import ModelSize, expert_size, router_size
from fusionroute.training.planning.precheck import load_config
from fusionroute.training.settings import TrainSettings


@dataclass(frozen=True)
class Planned:
    """One model of a run; ``weights`` names the checkpoint that it shares with others, as adapters over one base do."""

    name: str
    location: str
    weights: str
    config: PreTrainedConfig
    dtype: torch.dtype
    size: ModelSize


def line_up(settings: TrainSettings, device: torch.device) -> dict[str, Planned]:
    """The router as it is trained, then the experts as they are scored. Raises `CheckpointError`."""
    config = load_config(settings.router.reference)
    dtype = _dtype(settings.router.dtype, config, device)
    head = len(settings.experts) if settings.makes_a_team else 1
    size = router_size(config, dtype, settings.router, head)
    models = {ROUTER: Planned(ROUTER, settings.router.init, _weights(settings.router.reference), config, dtype, size)}
    for name, reference in settings.experts.items():
        config = load_config(reference)
        dtype = _dtype(reference.dtype or settings.dtype, config, device)
        size = expert_size(config, dtype)
        models[name] = Planned(name, reference.model, _weights(reference), config, dtype, size)
    return models


def team_sizes(models: Iterable[Planned], settings: TrainSettings) -> list[ModelSize]:
    """What must be in memory for all of them to write together: each checkpoint once."""
    once: dict[tuple[str, torch.dtype], ModelSize] = {}
    for model in models:
        dtype, weights = model.dtype, model.weights
        if model.name == ROUTER:
            dtype = resolve_dtype(settings.dtype) or dtype
            weights = weights if settings.router.lora else "trained"
        once[weights, dtype] = replace(model.size, width=dtype.itemsize)
    return list(once.values())


def _weights(reference: ModelReference) -> str:
    base = full_model(reference)
    return f"{base.model} {base.revision}"


def _dtype(asked: str | None, config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """As `load_model` decides."""
    own = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    if asked is None and own == torch.float16 and device.type == "cpu":
        return torch.float32
    return resolve_dtype(asked) or own
