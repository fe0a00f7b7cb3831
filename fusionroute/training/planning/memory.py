"""What a stage keeps in the memory of one device: weights counted exactly, what a pass needs by a rough formula.

Nothing is allocated: the models are built on torch's meta device, from their configs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from fusionroute.errors import CheckpointError
from fusionroute.models.adapters import add_lora
from fusionroute.models.router import Router
from fusionroute.training.settings import LoraSettings, RouterSettings

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class ModelSize:
    """What memory and time depend on; ``trainable`` of the ``parameters`` get gradients, ``width`` bytes each."""

    parameters: int
    trainable: int
    width: int
    vocabulary: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    eager: bool  # attention keeps a weight for every pair of positions

    @property
    def nbytes(self) -> int:
        return self.parameters * self.width


@dataclass(frozen=True)
class Need:
    """Bytes on one device at the worst moment of a stage.

    Attributes:
        weights: of the model that works, or of all that must be there together.
        gradients, moments: of what is trained; AdamW has two moments.
        experts: those that stay in memory beside the router.
        activations: of the largest batch, kept for the backward pass if there is one.
        logits: of the largest batch, with the copies that the losses make.
    """

    weights: int
    gradients: int = 0
    moments: int = 0
    experts: int = 0
    activations: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.experts + self.activations + self.logits


def expert_size(config: PreTrainedConfig, dtype: torch.dtype) -> ModelSize:
    """A frozen model. Raises `CheckpointError` if the config is not of a causal LM."""
    return _size(build(config, dtype, "meta"), trainable=0)


def router_size(config: PreTrainedConfig, dtype: torch.dtype, settings: RouterSettings, experts: int) -> ModelSize:
    """The router with its head, and with its LoRA if it gets one. Raises as `expert_size` does, and as `add_lora`."""
    router = build_router(config, dtype, "meta", settings, experts)
    return _size(router, trainable=sum(weight.numel() for weight in router.parameters() if weight.requires_grad))


def build(config: PreTrainedConfig, dtype: torch.dtype, device: str | torch.device) -> PreTrainedModel:
    """A causal LM with random weights, of which the meta device keeps only the shapes."""
    try:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{config.name_or_path or 'a config'} is not of a causal LM ({error})") from error


def build_router(
    config: PreTrainedConfig, dtype: torch.dtype, device: str | torch.device, settings: RouterSettings, experts: int
) -> Router:
    """A router with random weights, trained in the parts that ``settings`` say."""
    lm = build(config, dtype, device)
    lora: LoraSettings | None = settings.lora
    if lora is not None:
        lm.name_or_path = ""  # the architecture alone: no adapter is looked for at its place
        lm = add_lora(lm, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets)
    return Router(lm, experts, bias=settings.head_bias)


def _size(model: Any, trainable: int) -> ModelSize:
    config = model.config.get_text_config()
    hidden = config.hidden_size
    return ModelSize(
        parameters=sum(weight.numel() for weight in model.parameters()),
        trainable=trainable,
        width=model.dtype.itemsize,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        hidden=hidden,
        intermediate=getattr(config, "intermediate_size", 4 * hidden) * getattr(config, "num_experts_per_tok", 1),
        heads=config.num_attention_heads,
        eager=config._attn_implementation == "eager",
    )


def scoring_need(expert: ModelSize, rows: int, length: int) -> Need:
    """An expert that reads: one layer's activations at a time, and logits, of one row in float32."""
    per_token = expert.width * (6 * expert.hidden + 3 * expert.intermediate)
    logits = rows * length * expert.vocabulary * expert.width + 2 * FLOAT32 * length * expert.vocabulary
    return Need(expert.nbytes, activations=rows * length * (per_token + _attention(expert, length)), logits=logits)


def training_need(
    router: ModelSize,
    rows: int,
    length: int,
    *,
    bf16: bool,
    checkpointing: bool,
    shards: int = 1,
    live: Sequence[ModelSize] = (),
) -> Need:
    """The router in training, every token of the batch an answer token.

    Args:
        bf16: arithmetic in bfloat16 over the weights as they are, of which autocast keeps copies.
        shards: devices that share weights, gradients and moments.
        live: experts in memory for a loss over the whole vocabulary.
    """
    width = 2 if bf16 else router.width
    logits = rows * length * router.vocabulary
    # accelerate hands the loss float32 logits; it takes them apart, and each part has a gradient
    copies = 4 * (FLOAT32 if bf16 else width) + 3 * FLOAT32 + 2 * FLOAT32 * len(live)
    copied = router.trainable if checkpointing else router.parameters
    copy = width * copied if bf16 and router.width > width else 0
    return Need(
        weights=(router.nbytes + copy) // shards,
        gradients=router.trainable * router.width // shards,
        moments=2 * router.trainable * router.width // shards,
        experts=sum(expert.nbytes for expert in live),
        activations=rows * length * _kept(router, width, length, checkpointing),
        logits=logits * copies,
    )


def writing_need(models: Sequence[ModelSize]) -> Need:
    """A team that writes; its key-value cache takes what is left, as `engine.memory` says."""
    return Need(sum(model.nbytes for model in models))


def _kept(model: ModelSize, width: int, length: int, checkpointing: bool) -> int:
    """Bytes per token that wait for the backward pass.

    Counted on Llama, Qwen3 and Gemma-2: a layer keeps ten times the hidden size and four times the intermediate one,
    and in half precision the norms' float32 besides. Gradient checkpointing keeps a layer's input, and one whole layer.
    """
    in_float32 = 4 * FLOAT32 * model.hidden if width < FLOAT32 else 0
    layer = width * (10 * model.hidden + 4 * model.intermediate) + in_float32 + _attention(model, length)
    return model.layers * FLOAT32 * model.hidden + layer if checkpointing else model.layers * layer


def _attention(model: ModelSize, length: int) -> int:
    """Eager attention keeps its scores, in all about eight bytes per head for each position looked at."""
    return 8 * model.heads * length if model.eager else 0
