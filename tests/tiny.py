"""Tiny random models of real families, built in code. Decisive weights: with near-ties equality is chance."""

from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fusionroute import Router, Team

SPECIAL = ("<pad>", "<bos>", "<eos>", "<user>", "<assistant>")
VOCABULARY = len(SPECIAL) + 256
EOS = SPECIAL.index("<eos>")
CONTEXT = 160
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% if m['role'] == 'assistant' %}<eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": EOS,
}
WINDOW = 5  # far below the lengths tested, so that sliding layers really slide
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": WINDOW}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "gemma3": ("Gemma3Text", {"head_dim": 8, "sliding_window": WINDOW}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
}


def language_model(family: str = "llama", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    kind, extra = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(**{**COMMON, **extra, **overrides})
    torch.manual_seed(seed)
    return getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).eval()


def tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level, no merges: token = byte, so every text round-trips and stop strings cross tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: at for at, token in enumerate([*SPECIAL, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", chat_template=CHAT_TEMPLATE
    )


def experts(**options: Any) -> dict[str, PreTrainedModel]:
    """Three of one family, by name."""
    return {name: language_model(seed=at, **options) for at, name in enumerate(("math", "code", "chat"))}


def router(family: str = "llama", num_experts: int = 3, seed: int = 100, **overrides: Any) -> Router:
    made = Router(language_model(family, seed, **overrides), num_experts)
    torch.nn.init.normal_(made.route_head.weight)
    return made.eval()


def team(
    family: str = "llama", names: tuple[str, ...] = ("math", "code", "chat"), seed: int = 0, **options: Any
) -> Team:
    experts = {name: language_model(family, seed + at) for at, name in enumerate(names)}
    return Team(router=router(family, len(names), seed + 100), experts=experts, tokenizer=tokenizer(), **options)


def prompts(count: int, seed: int = 0, longest: int = 24) -> list[list[int]]:
    """Token ids of mixed lengths, from one token on; no special tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(len(SPECIAL), VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
