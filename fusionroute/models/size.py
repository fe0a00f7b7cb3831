"""What models will take of each device's memory, told from the headers of their files before any weights are read."""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedConfig

from fusionroute.errors import CheckpointError, ModelsTooLargeError
from fusionroute.models.loading import (
    Dtype,
    Loaded,
    ModelReference,
    adapter_at,
    check_place,
    full_model,
    load_config,
    require_location,
)

logger = logging.getLogger(__name__)

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CACHE_TOKENS = 1024  # of one sequence, in every model: with room for fewer there is no use in loading them
LONGEST_HEADER = 100 * 2**20  # bytes, as safetensors itself has it
GIB = 2**30

Counts = dict[str, int]  # numbers of a checkpoint by the name of their type in safetensors


def check_fit(
    models: Mapping[str, ModelReference],
    *,
    dtype: Dtype = None,
    device: str | None = None,
    devices: Mapping[str, str] | None = None,
    loaded: Loaded | None = None,
) -> None:
    """Insist that these models, and a small cache for each, fit into what their devices have free.

    Bases that adapters share count once, and what is in ``loaded`` does not count. A model of which the size cannot be
    told beforehand is taken for nothing, and so is one that is not there: loading it says what is wrong.

    Args:
        models: by name, as they will be loaded.
        dtype, device: of models that name none of their own.
        devices: of some models, by name, before ``device``.

    Raises:
        ModelsTooLargeError: they do not.
        SettingsError: a dtype that is none, or a device that this machine lacks.
    """
    needed: dict[torch.device, dict[str, int]] = defaultdict(dict)
    counted: set[Any] = set(loaded or ())
    for name, reference in models.items():
        wanted, place = check_place(reference, dtype=dtype, device=(devices or {}).get(name, device))
        with suppress(CheckpointError, OSError):
            needed[place][name] = _bytes_of(reference, wanted, place, counted)
    for place, parts in needed.items():
        _refuse_what_does_not_fit(place, parts, free_bytes(place))


def free_bytes(device: torch.device) -> int:
    """Memory of ``device`` that is free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def weight_bytes(reference: ModelReference, dtype: torch.dtype | None, device: torch.device) -> int | None:
    """Bytes of a full model's weights as `load_model` will hold them; None if nobody can tell.

    Args:
        dtype: None = the checkpoint's own, as `load_model` takes it.
    """
    location = require_location(reference.model)
    counts = _local_counts(location, reference.revision)
    if counts is None and not Path(location).is_dir():
        counts = _hub_counts(location, reference.revision)
    if counts is None:
        return None
    held = dtype or _own_dtype(counts, load_config(reference), device)
    return int(sum(count * (held.itemsize if kind in FLOATS else _size(kind)) for kind, count in counts.items()))


def _bytes_of(reference: ModelReference, dtype: torch.dtype | None, device: torch.device, counted: set[Any]) -> int:
    """Weights that are not counted yet, with a cache."""
    adapter, full = adapter_at(reference), full_model(reference)
    own = 0 if adapter is None else sum(_sized(_header(adapter.weights)).values())
    key = (require_location(full.model), full.revision, dtype, device)
    base = 0 if key in counted else weight_bytes(full, dtype, device) or 0
    counted.add(key)
    config = load_config(full)
    return own + base + _cache_bytes(config, dtype or getattr(config, "dtype", None) or torch.float32)


def _cache_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Of `CACHE_TOKENS` tokens; 0 for a config that does not say what they take."""
    text: Any = config.get_text_config()
    layers, heads, size = (
        getattr(text, name, 0) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    if not (layers and heads and size):
        return 0
    width = getattr(text, "head_dim", None) or size // heads
    numbers = 2 * layers * (getattr(text, "num_key_value_heads", None) or heads) * width * CACHE_TOKENS
    return int(numbers * dtype.itemsize)


def _refuse_what_does_not_fit(device: torch.device, parts: Mapping[str, int], free: int) -> None:
    needed = sum(parts.values())
    logger.info("on %s: %s of %s free", device, _gib(needed), _gib(free))
    if needed > free:
        each = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
        raise ModelsTooLargeError(
            f"the models need {_gib(needed)} on {device} ({each}) but {_gib(free)} are free there; "
            "load them in a smaller dtype such as bfloat16, put some of them on another device, make experts adapters "
            "over one base, or use fewer"
        )


def _gib(size: int) -> str:
    return f"{size / GIB:.3g} GiB"


def _own_dtype(counts: Counts, config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """What transformers' "auto" takes, and what `load_model` makes of float16 on a CPU."""
    own = getattr(config, "dtype", None)
    if not isinstance(own, torch.dtype):
        own = next((FLOATS[kind] for kind in counts if kind in FLOATS), torch.float32)
    return torch.float32 if own == torch.float16 and device.type == "cpu" else own


def _local_counts(location: str, revision: str | None) -> Counts | None:
    """From the headers of all weight files; None if one of them is missing or unreadable."""
    index = _local_file(location, INDEX_FILE, revision)
    names: Iterable[str] = [WEIGHTS_FILE]
    try:
        if index is not None:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        counts: Counts = defaultdict(int)
        for name in names:
            path = _local_file(location, name, revision)
            if path is None:
                return None
            for tensor in _header(path).values():
                counts[tensor["dtype"]] += math.prod(tensor["shape"])
        return counts
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _local_file(location: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder, or of a hub repository as far as it was fetched before."""
    if Path(location).is_dir():
        path = Path(location) / name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(location, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _hub_counts(location: str, revision: str | None) -> Counts | None:
    """From what the hub says of a repository that is not here yet."""
    from huggingface_hub import get_safetensors_metadata

    try:
        known = get_safetensors_metadata(location, revision=revision).parameter_count
        return {str(kind): count for kind, count in known.items()}
    except Exception:  # offline, gated, without safetensors, …: each is told when it is loaded
        return None


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """Names, types and shapes in a safetensors file. Raises `ValueError` if it is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= LONGEST_HEADER:
            raise ValueError(f"{path} is no safetensors file")
        header = dict(json.loads(file.read(length)))
    header.pop("__metadata__", None)
    return header


def _sized(header: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Bytes of each tensor, as it is stored."""
    return {name: tensor["data_offsets"][1] - tensor["data_offsets"][0] for name, tensor in header.items()}


def _size(kind: str) -> float:
    """Bytes of one number of a type that is kept as it is: its name ends, or begins, with its bits."""
    if kind == "BOOL":
        return 1
    digits = "".join(each for each in kind.split("_")[0] if each.isdigit())
    return int(digits or 8) / 8
