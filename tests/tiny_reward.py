"""A tiny random reward model on disk, and what it says of one text that it reads alone."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

import tiny


def save_reward_model(folder: Path, *, template: bool = True, **overrides: Any) -> str:
    values = {**tiny.COMMON, "num_labels": 1, **overrides}
    torch.manual_seed(5)
    LlamaForSequenceClassification(LlamaConfig(**values)).save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return str(folder)


def read_alone(model: Any, text: str) -> float:
    ids = torch.tensor([tiny.tokenizer()(text, add_special_tokens=False).input_ids])
    with torch.no_grad():
        return float(model(ids).logits[0, 0])
