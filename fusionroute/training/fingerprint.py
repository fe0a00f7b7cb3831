"""What scores belong to: these tokens, this vocabulary, these experts. When a file was written does not matter."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fusionroute.models.loading import ModelReference, require_location
from fusionroute.training.precheck import load_config

SAMPLES, SAMPLE_BYTES = 64, 2**16


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


def expert_fingerprint(reference: ModelReference, dtype: str | None) -> dict[str, str | None]:
    """Which model an expert is, and in what precision it was asked to run."""
    return {
        "model": reference.model,
        "revision": reference.revision,
        "dtype": reference.dtype or dtype or "auto",
        "content": _content(reference),
    }


def _content(reference: ModelReference) -> str | None:
    """A hub model is its commit; a folder is its config and its weights, which may have been trained on since."""
    location = require_location(reference.model)
    if not Path(location).is_dir():
        return getattr(load_config(reference), "_commit_hash", None)
    digest = hashlib.sha256((Path(location) / "config.json").read_bytes())
    for path in sorted(Path(location).glob("*.safetensors")):
        digest.update(path.name.encode())
        _add_file(digest, path)
    return digest.hexdigest()


def _add_file(digest: Any, path: Path) -> None:
    """Size and evenly spread samples: training moves nearly every weight, and reading gigabytes would take minutes."""
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for at in sorted({i * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1) for i in range(SAMPLES)}):
            file.seek(at)
            digest.update(file.read(SAMPLE_BYTES))
