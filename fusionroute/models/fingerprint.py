"""Which model a result belongs to, by its content. Where its files lie and when they were written do not matter."""

import hashlib
from pathlib import Path
from typing import Any

from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from fusionroute.errors import CheckpointError
from fusionroute.models.adapters import CONFIG_FILE
from fusionroute.models.loading import ModelReference, adapter_at, full_model, require_location

SAMPLES, SAMPLE_BYTES = 64, 2**16
# What decides how text becomes tokens and where an answer ends
TEXT_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "chat_template*",
    "generation_config.json",
)


def model_fingerprint(reference: ModelReference, dtype: str | None) -> dict[str, str | None]:
    """Which model this is, and in what precision it was asked to run.

    Of a folder the name alone: its content says which model it is, and it may have been moved.
    """
    folder = Path(reference.model).expanduser()
    return {
        "model": folder.name if folder.is_dir() else reference.model,
        "revision": reference.revision,
        "dtype": reference.dtype or dtype or "auto",
        "content": _content(reference),
    }


def text_fingerprint(reference: ModelReference) -> str | None:
    """Tokenizer, chat template and generation config of a local model; None for one of the hub: its commit says it."""
    folder = Path(reference.model).expanduser()
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted({path for pattern in TEXT_FILES for path in folder.glob(pattern) if path.is_file()}):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _content(reference: ModelReference) -> str | None:
    """Of an adapter, its own files and the content of its base: a change of either makes another expert."""
    adapter = adapter_at(reference)
    if adapter is None:
        return _full_content(reference)
    digest = hashlib.sha256((adapter.folder / CONFIG_FILE).read_bytes())
    _add_file(digest, adapter.weights)
    digest.update(str(_full_content(full_model(reference))).encode())
    return digest.hexdigest()


def _full_content(reference: ModelReference) -> str | None:
    """A hub model is its commit; a folder is its config and its weights, which may have been trained on since."""
    location = require_location(reference.model)
    if not Path(location).is_dir():
        return _commit(location, reference.revision)
    digest = hashlib.sha256((Path(location) / "config.json").read_bytes())
    for path in sorted(Path(location).glob("*.safetensors")):
        digest.update(path.name.encode())
        _add_file(digest, path)
    return digest.hexdigest()


def _commit(hub_id: str, revision: str | None) -> str | None:
    """Read off where the cache keeps it: in the folder of its commit."""
    try:
        return extract_commit_hash(cached_file(hub_id, "config.json", revision=revision), None)
    except OSError as error:
        raise CheckpointError(f"{hub_id} has no readable config.json ({error}); fetch or save it again") from error


def _add_file(digest: Any, path: Path) -> None:
    """Size and evenly spread samples: training moves nearly every weight, and reading gigabytes would take minutes."""
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for at in sorted({i * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1) for i in range(SAMPLES)}):
            file.seek(at)
            digest.update(file.read(SAMPLE_BYTES))
