"""Tiny random mixture-of-experts models of real families, built in code."""

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import tiny

EXPERTS, TOP_K = 8, 2
MIXTURE: dict[str, Any] = {
    **tiny.COMMON,
    "num_hidden_layers": 4,
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_intermediate_size": 24,
}
DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "topk_method": "greedy",
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "num_key_value_heads": 4,
}
# The number of MoE layers among the four decoder layers stands in MOE_LAYERS
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "olmoe": ("Olmoe", {}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 8, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "qwen3_moe_plain": ("Qwen3Moe", {"head_dim": 8, "norm_topk_prob": False}),
    "deepseek_v2": ("DeepseekV2", DEEPSEEK),
    "mixtral": ("Mixtral", {"num_local_experts": EXPERTS}),
}
MOE_LAYERS = {"olmoe": 4, "qwen3_moe": 3, "qwen3_moe_plain": 4, "deepseek_v2": 3, "mixtral": 4}
RENORMALISE = {"qwen3_moe", "mixtral"}

LINEAR: dict[str, Any] = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
}
# Others whose gates are of the same kind; the first four and the last have a cache with states or windows
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "jamba": (
        "Jamba",
        {
            "use_mamba_kernels": False,
            "mamba_d_state": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    "minimax": ("MiniMax", {"num_local_experts": EXPERTS, "head_dim": 8, "block_size": 4}),
    "windowed_mixtral": ("Mixtral", {"num_local_experts": EXPERTS, "sliding_window": tiny.WINDOW}),
    "qwen3_next": ("Qwen3Next", LINEAR),
    "qwen2_moe": ("Qwen2Moe", {"shared_expert_intermediate_size": 24}),
    "flex_olmo": ("FlexOlmo", {}),
    "hunyuan": ("HunYuanMoEV1", {"moe_topk": TOP_K, "head_dim": 8}),
    "mellum": ("Mellum", {"head_dim": 8}),
}
GROUPS: dict[str, Any] = {"n_group": 2, "topk_group": 1}
# Gates that score in another way, and what is said of them
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "groups": ("DeepseekV2", {**DEEPSEEK, **GROUPS, "topk_method": "group_limited_greedy"}, "limited to groups"),
    "sigmoids": ("DeepseekV3", {**DEEPSEEK, **GROUPS}, "e_score_correction_bias"),
    "bias": ("GptOss", {"num_local_experts": EXPERTS, "head_dim": 8}, "holds bias"),
    "correction": (
        "Ernie4_5_Moe",
        {"moe_num_experts": EXPERTS, "moe_k": TOP_K, "moe_layer_start_index": 0, "moe_layer_end_index": 3},
        "e_score_correction_bias",
    ),
    "softmax last": ("GraniteMoe", {"num_local_experts": EXPERTS}, "softmax after the top-k"),
    "sparsemixer": ("Phimoe", {"num_local_experts": EXPERTS}, "does not weigh experts by softmax"),
    "one tensor": ("JetMoe", {"num_local_experts": EXPERTS}, "does not return logits, weights and indices"),
    "dense": ("Llama", {}, "no mixture-of-experts layer"),
}


def mixture(family: str = "olmoe", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A model of one of `FAMILIES` or `OTHERS` in evaluation mode."""
    kind, extra = (FAMILIES | OTHERS)[family]
    return built(kind, {**extra, **overrides}, seed)


def built(kind: str, options: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """A model of transformers by the beginning of its classes' names, in evaluation mode."""
    config = getattr(transformers, f"{kind}Config")(**{**MIXTURE, **options})
    torch.manual_seed(seed)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def routing(rows: int, layers: int, seed: int = 0, experts: int = EXPERTS, **options: Any) -> Tensor:
    """Random probabilities ``[rows, layers, experts]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, layers, experts, generator=generator, **options).mul(2).softmax(-1)


def padded(ids: list[list[int]], side: str = "right", pad: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of sequences of any lengths."""
    width = max(map(len, ids))
    rows, mask = [], []
    for row in ids:
        fill = width - len(row)
        rows.append(row + [pad] * fill if side == "right" else [pad] * fill + row)
        mask.append([1] * len(row) + [0] * fill if side == "right" else [0] * fill + [1] * len(row))
    return torch.tensor(rows), torch.tensor(mask)
