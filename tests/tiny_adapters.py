"""Tiny adapters on disk, written by peft itself, whose effect is far from nothing; and what peft makes of them."""

import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import tiny


def save_base(folder: Path, family: str = "llama", **overrides: Any) -> Path:
    tiny.language_model(family, **overrides).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def adapted(base: str | Path | PreTrainedModel, seed: int = 0, config: peft.PeftConfig | None = None) -> Any:
    """A model with a new adapter of random weights (by default a LoRA in all linear layers)."""
    lm = base if isinstance(base, PreTrainedModel) else AutoModelForCausalLM.from_pretrained(base)
    config = config or peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = _quietly(peft.get_peft_model, lm, config)
    torch.manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.3)  # the second factor would start at zero
    return model.eval()


def save_adapter(folder: Path, base: Path, seed: int = 0, config: peft.PeftConfig | None = None) -> Path:
    adapted(base, seed, config).save_pretrained(folder)
    return folder


def merged(folder: Path) -> PreTrainedModel:
    """What peft makes of an adapter on disk."""
    base = AutoModelForCausalLM.from_pretrained(peft.PeftConfig.from_pretrained(folder).base_model_name_or_path)
    return _quietly(peft.PeftModel.from_pretrained, base, folder).merge_and_unload().eval()


def _quietly(make: Any, *args: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return make(*args)
