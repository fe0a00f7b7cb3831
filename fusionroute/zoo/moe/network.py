"""The untaught models: two architectures of the same shape, with their gates drawn at random."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import (
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    set_seed,
)

from fusionroute.zoo.moe.recipe import Network
from fusionroute.zoo.moe.roster import PER_TOKEN, ROLES


def blank_model(name: str, network: Network, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Random weights, the same ones for the same seed. ``name`` is a key of `ARCHITECTURES`."""
    set_seed(seed)
    model = ARCHITECTURES[name](network, _shared(network, tokenizer))
    with torch.no_grad():
        for layer in model.model.layers:
            nn.init.normal_(layer.mlp.gate.weight, std=network.initializer_range)  # transformers leaves them at zero
            layer.self_attn.o_proj.weight.mul_(network.branch_scale)
            layer.mlp.experts.down_proj.mul_(network.branch_scale)
    return model


def _olmoe(network: Network, shared: Mapping[str, Any]) -> PreTrainedModel:
    """As released: the weights of the chosen experts stay as the softmax over all gave them, summing to less than 1."""
    return OlmoeForCausalLM(OlmoeConfig(**shared, intermediate_size=network.expert_size, norm_topk_prob=False))


def _qwen3_moe(network: Network, shared: Mapping[str, Any]) -> PreTrainedModel:
    """As released: the weights of the chosen experts are scaled to sum 1, so that no gradient reaches the others."""
    sizes = {"intermediate_size": network.expert_size, "moe_intermediate_size": network.expert_size}
    own = {**shared, **sizes, "head_dim": network.hidden_size // network.num_attention_heads}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**own, norm_topk_prob=True))


ARCHITECTURES: Mapping[str, Callable[[Network, Mapping[str, Any]], PreTrainedModel]] = MappingProxyType(
    {"olmoe": _olmoe, "qwen3_moe": _qwen3_moe}
)


def _shared(network: Network, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": network.hidden_size,
        "num_hidden_layers": network.num_hidden_layers,
        "num_attention_heads": network.num_attention_heads,
        "num_key_value_heads": network.num_attention_heads,
        "num_experts": len(ROLES),
        "num_experts_per_tok": PER_TOKEN,
        "max_position_embeddings": network.max_position_embeddings,
        "tie_word_embeddings": True,
        "initializer_range": network.initializer_range,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
