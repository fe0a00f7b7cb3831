"""Tensors that took long to make, kept on disk by what they were made from. Any doubt about a file: made again."""

import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)

VARIABLE = "FUSIONROUTE_CACHE"
_warned: set[Path] = set()


def cache_folder() -> Path:
    """``$FUSIONROUTE_CACHE``, else ``fusionroute`` in ``$XDG_CACHE_HOME``, else ``~/.cache/fusionroute``."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fusionroute"


def read_cached(kind: str, fingerprint: str) -> dict[str, Tensor] | None:
    """What `write_cached` wrote under this kind and fingerprint; None if there is nothing, or nothing readable."""
    path = _path(kind, fingerprint)
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}) != _metadata(kind, fingerprint):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError, ValueError):
        return None


def write_cached(kind: str, fingerprint: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep tensors on disk, whole or not at all. A folder that cannot be written is said once, and is no error."""
    path = _path(kind, fingerprint)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(dict(tensors), temporary, metadata=_metadata(kind, fingerprint))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        if path.parent not in _warned:
            _warned.add(path.parent)
            logger.warning(
                "%s cannot be written (%s), so vocabularies are aligned anew every time; set %s to a folder of yours",
                path.parent,
                error,
                VARIABLE,
            )


def _path(kind: str, fingerprint: str) -> Path:
    return cache_folder() / "vocabulary" / f"{kind}-{fingerprint}.safetensors"


def _metadata(kind: str, fingerprint: str) -> dict[str, str]:
    return {"format": f"fusionroute.{kind}", "fingerprint": fingerprint}
