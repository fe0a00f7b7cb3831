"""How long a batch takes on this device: measured with one and two layers of random weights, drawn on to full depth."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from fusionroute.models.router import Router
from fusionroute.ops.losses import expected_nll, sft_sums
from fusionroute.training.planning.memory import build, build_router
from fusionroute.training.scoring.scores import score_batch
from fusionroute.training.settings import RouterSettings

PATIENCE = 3.0  # seconds for one of the measurements, of which a probe makes at most six
REPEATS = 5


@dataclass(frozen=True)
class TrainingTime:
    """Seconds: forward and backward of one batch, and the optimizer's part of a step."""

    batch: float
    optimizer: float


def shortened(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The same architecture with fewer layers: whatever the config lists per layer is cut too."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    full = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == full:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return config


def scoring_seconds(
    config: PreTrainedConfig, dtype: torch.dtype, device: torch.device, rows: int, length: int
) -> float:
    """One batch of `score_batch` at full depth."""
    ids = _tokens(config, rows, length, device)

    def measure(layers: int) -> float:
        model = build(shortened(config, layers), dtype, device).eval()
        return _seconds(lambda: score_batch(model, ids, torch.ones_like(ids)), device)

    return _at_full_depth(config, measure(1), measure(2))


def training_seconds(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    rows: int,
    length: int,
    settings: RouterSettings,
    experts: int,
    *,
    bf16: bool,
    checkpointing: bool,
) -> TrainingTime:
    """A batch of stage 1 at full depth, every token an answer token; the losses of stage 2 cost about the same."""
    ids = _tokens(config, rows, length, device)

    def measure(layers: int) -> TrainingTime:
        router = build_router(shortened(config, layers), dtype, device, settings, experts).train()
        if checkpointing:
            router.activation_checkpointing_enable()
        trained = [weight for weight in router.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, fused=True)  # as Trainer does
        with_gradients = _seconds(lambda: _backward(router, ids, bf16), device)
        return TrainingTime(with_gradients, _seconds(lambda: _step(trained, optimizer), device))

    one, two = measure(1), measure(2)
    return TrainingTime(
        _at_full_depth(config, one.batch, two.batch), _at_full_depth(config, one.optimizer, two.optimizer)
    )


def _backward(router: Router, ids: Tensor, bf16: bool) -> None:
    router.zero_grad()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        outputs = router(ids, attention_mask=torch.ones_like(ids), use_cache=False)
    assert outputs.logits is not None
    assert outputs.route_logits is not None
    is_answer = torch.ones_like(ids, dtype=torch.bool)
    is_answer[:, -1] = False
    logits, route_logits = outputs.logits[is_answer], outputs.route_logits[is_answer]
    if bf16:  # as accelerate does
        logits = logits.float()
    routing = expected_nll(route_logits, torch.rand_like(route_logits))
    sft_sums(logits, ids[:, 1:].flatten(), routing).loss(1 / 3).backward()


def _step(trained: list[Any], optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()


def _tokens(config: PreTrainedConfig, rows: int, length: int, device: torch.device) -> Tensor:
    return torch.randint(config.get_text_config().vocab_size, (rows, length), device=device)


def _at_full_depth(config: PreTrainedConfig, one: float, two: float) -> float:
    return one + max(two - one, 0.0) * (config.get_text_config().num_hidden_layers - 1)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of a few runs after a first one, which is slower; that one alone if it takes long."""
    taken = [_timed(work, device)]
    while sum(taken) < PATIENCE and len(taken) <= REPEATS:
        taken.append(_timed(work, device))
    return median(taken[1:] or taken)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    began = perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return perf_counter() - began
