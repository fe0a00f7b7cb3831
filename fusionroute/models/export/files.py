"""The files of a model, by their names in its folder, wherever they lie, and whether they are whole."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from fusionroute.errors import CheckpointError
from fusionroute.models.export.format import is_below
from fusionroute.models.loading import ModelReference, full_model, require_location

CONFIG = "config.json"


def weight_files(reference: ModelReference) -> dict[str, Path]:
    """The files that transformers would read, by their names in the model's folder, fetched if need be.

    Raises `CheckpointError` if it could not read them.
    """
    single = file_of(reference, SAFE_WEIGHTS_NAME)
    index = None if single else file_of(reference, SAFE_WEIGHTS_INDEX_NAME)
    if single:
        _tensor_names(single)
        return {SAFE_WEIGHTS_NAME: single}
    if index is None:
        raise CheckpointError(
            f"{reference.model} has no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME}; save it as safetensors"
        )
    return {SAFE_WEIGHTS_INDEX_NAME: index, **_shards(reference, index)}


def _shards(reference: ModelReference, index: Path) -> dict[str, Path]:
    """The files that an index names, each with all the tensors that should stand in it."""
    shards = {}
    for name, tensors in _tensors_by_shard(index).items():
        shards[name] = _shard(reference, name)
        if missing := sorted(tensors - _tensor_names(shards[name])):
            raise CheckpointError(
                f"{reference.model} is half-written: {name} lacks {missing[0]}, which {index.name} says is there; "
                "fetch or save it again"
            )
    return shards


def _tensors_by_shard(index: Path) -> dict[str, set[str]]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not weight_map:
            raise ValueError("it names no tensor")
        shards: dict[str, set[str]] = {}
        for tensor, shard in sorted(weight_map.items(), key=lambda item: str(item[1])):
            if not isinstance(shard, str) or not is_below(shard):
                raise ValueError(f"{shard!r} is no file below its folder")
            shards.setdefault(shard, set()).add(tensor)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is corrupt ({error!r}); fetch or save the model again") from error
    return shards


def _shard(reference: ModelReference, name: str) -> Path:
    path = file_of(reference, name)
    if path is None:
        raise CheckpointError(f"{reference.model} is half-written: {name} is missing; fetch or save it again")
    return path


def file_of(reference: ModelReference, name: str) -> Path | None:
    """Where a file of the model lies, fetched if need be; None if it has no such file."""
    found = cached_file(
        require_location(reference.model),
        name,
        revision=reference.revision,
        _raise_exceptions_for_missing_entries=False,
    )
    return Path(found) if found else None


def _tensor_names(path: Path) -> set[str]:
    """What stands in a file. Its header says how long it must be, so that one cut short is found here too."""
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is corrupt ({error}); fetch or save the model again") from error


def raw_config(reference: ModelReference) -> dict[str, Any]:
    """``config.json`` as it stands there: what it means is the business of the transformers that reads it.

    Raises `CheckpointError` if there is none.
    """
    path = file_of(full_model(reference), CONFIG)
    if path is None:
        raise CheckpointError(f"{reference.model} has no {CONFIG}; fetch or save it again")
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return raw
