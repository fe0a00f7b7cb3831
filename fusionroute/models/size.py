"""What models will take of each device's memory, told from the headers of their files before any weights are read."""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
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
PATIENCE = 5  # seconds for the hub to say how large a model is
MALFORMED = (OSError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
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
    """Insist that the weights of these models fit into what their devices have free.

    Bases that adapters share count once, and what is in ``loaded`` does not count. What cannot be told beforehand is
    taken for nothing, and so is a model that is not there, or half-written: loading it says what is wrong. Where the
    hub does not answer nothing is said at all.

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
    sizes = Sizes()
    for name, reference in models.items():
        wanted, place = check_place(reference, dtype=dtype, device=(devices or {}).get(name, device))
        try:
            needed[place][name] = _bytes_of(reference, wanted, place, counted, sizes)
        except HubUnreachableError:
            return
        except (CheckpointError, OSError):
            continue
    for place, parts in needed.items():
        _refuse_what_does_not_fit(place, parts, free_bytes(place))


def free_bytes(device: torch.device) -> int:
    """Memory of ``device`` that is free now, for this process what torch keeps there for later included."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return int(psutil.virtual_memory().available)


def weight_bytes(
    reference: ModelReference, dtype: torch.dtype | None, device: torch.device, sizes: "Sizes | None" = None
) -> int | None:
    """Bytes of a full model's weights as `load_model` will hold them; None if nobody can tell.

    Args:
        dtype: None = the checkpoint's own, as `load_model` takes it.

    Raises:
        HubUnreachableError: it is not here, and the hub does not answer.
    """
    counts = (sizes or Sizes()).of(require_location(reference.model), reference.revision)
    if counts is None:
        return None
    held = dtype or _own_dtype(counts, load_config(reference), device)
    return int(sum(count * (held.itemsize if kind in FLOATS else _size(kind)) for kind, count in counts.items()))


class HubUnreachableError(Exception):
    """The hub does not answer; caught here."""


class Sizes:
    """How many numbers checkpoints hold; each is looked up once, and so is each repository of the hub."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str | None], Counts | None] = {}

    def of(self, location: str, revision: str | None) -> Counts | None:
        """None if nobody can tell. Raises `HubUnreachableError`."""
        key = (location, revision)
        if key not in self._known:
            counts = _local_counts(location, revision)
            is_remote = counts is None and not Path(location).is_dir()
            self._known[key] = _hub_counts(location, revision) if is_remote else counts
        return self._known[key]


def _bytes_of(
    reference: ModelReference, dtype: torch.dtype | None, device: torch.device, counted: set[Any], sizes: Sizes
) -> int:
    """Weights that are not counted yet."""
    location, own, full = require_location(reference.model), 0, reference
    if Path(location).is_dir() or sizes.of(location, reference.revision) is None:  # else it has weights of its own
        adapter, full = adapter_at(reference), full_model(reference)
        own = 0 if adapter is None else _stored_bytes(adapter.weights)
    key = (require_location(full.model), full.revision, dtype, device)
    if key in counted:
        return own
    counted.add(key)
    return own + (weight_bytes(full, dtype, device, sizes) or 0)


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
                counts[str(tensor["dtype"])] += int(math.prod(tensor["shape"]))
        return counts
    except MALFORMED:
        return None


def _stored_bytes(path: Path) -> int:
    """Of a file's tensors, as they are stored; 0 if it is missing or unreadable."""
    try:
        return int(sum(tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in _header(path).values()))
    except MALFORMED:
        return 0


def _local_file(location: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder, or of a hub repository as far as it was fetched before."""
    if Path(location).is_dir():
        path = Path(location) / name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(location, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _hub_counts(location: str, revision: str | None) -> Counts | None:
    """From what the hub says of a repository that is not here yet, in one request. Raises `HubUnreachableError`."""
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError

    try:
        known = model_info(location, revision=revision, timeout=PATIENCE, expand=["safetensors"]).safetensors
        return None if known is None else {str(kind): int(count) for kind, count in known.parameters.items()}
    except HfHubHTTPError:  # gated, not there, …: each is told when it is loaded
        return None
    except Exception as error:  # offline, too slow, no name found: its HTTP library has many names for it
        raise HubUnreachableError from error


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """Names, types and shapes in a safetensors file. Raises `ValueError` if it is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= LONGEST_HEADER:
            raise ValueError(f"{path} is no safetensors file")
        header = dict(json.loads(file.read(length)))
    header.pop("__metadata__", None)
    return header


def _size(kind: str) -> float:
    """Bytes of one number of a type that is kept as it is: its name ends, or begins, with its bits."""
    if kind == "BOOL":
        return 1
    digits = "".join(each for each in kind.split("_")[0] if each.isdigit())
    return int(digits or 8) / 8
