"""What scores belong to beside the experts: these tokens, this vocabulary."""

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase


def data_fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Examples, tokens, and a hash over every token id and prompt length."""
    digest = hashlib.sha256()
    for chunk in dataset.data.column("input_ids").chunks:
        digest.update(pc.list_flatten(chunk).to_numpy().astype(np.int32).tobytes())
    lengths = token_counts(dataset)
    digest.update(lengths.astype(np.int64).tobytes())
    digest.update(prompt_lengths(dataset).astype(np.int64).tobytes())
    return {"examples": len(dataset), "tokens": int(lengths.sum()), "hash": digest.hexdigest()}


def token_counts(dataset: Dataset) -> np.ndarray:
    """Tokens of each example, prompt and answer."""
    return pc.list_value_length(dataset.data.column("input_ids")).to_numpy()


def prompt_lengths(dataset: Dataset) -> np.ndarray:
    return dataset.data.column("prompt_length").to_numpy()


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
