"""From a hub id or a folder to a live model. safetensors only; remote code only if the user says so."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.config import Settings, nearest
from fusionroute.errors import CheckpointError, SettingsError

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Dtype = torch.dtype | str | None


class ModelReference(Settings):
    """A model by name, as it stands in a team file: hub id or folder, and what loading it needs."""

    model: str
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None


def load_model(
    reference: str | Path | ModelReference,
    *,
    dtype: Dtype = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal LM in evaluation mode; what ``reference`` itself says of dtype and device comes first.

    ``dtype=None`` keeps the checkpoint's own, except that float16 becomes float32 on CPU, where half precision is
    slower and coarser.

    Raises:
        CheckpointError: the folder is missing, half-written or corrupt, or the weights are not safetensors.
    """
    reference = as_reference(reference)
    location = require_location(reference.model)
    device = torch.device(reference.device or device or default_device())
    wanted = resolve_dtype(reference.dtype or dtype)
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            location,
            revision=reference.revision,
            dtype=wanted or "auto",
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(_unreadable(location, error)) from error
    model, report = loaded
    _refuse_incomplete(location, report)
    if model.dtype == torch.float16 and device.type == "cpu" and wanted is None:
        model = model.float()
    return model.to(device).eval()


def load_tokenizer(
    reference: str | Path | ModelReference, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that stands beside a model. Raises `CheckpointError` as `load_model` does."""
    reference = as_reference(reference)
    location = require_location(reference.model)
    try:
        return AutoTokenizer.from_pretrained(location, revision=reference.revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(_unreadable(location, error, what="a tokenizer")) from error


def as_reference(reference: str | Path | ModelReference) -> ModelReference:
    return reference if isinstance(reference, ModelReference) else ModelReference(model=str(reference))


def default_device() -> str:
    """The accelerator of this machine if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None and torch.accelerator.is_available() else "cpu"


def resolve_dtype(dtype: Dtype) -> torch.dtype | None:
    """A torch dtype from its name; None and ``"auto"`` mean the checkpoint's own. Raises `SettingsError`."""
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype if isinstance(dtype, torch.dtype) else None
    if dtype not in DTYPES:
        raise SettingsError(f"dtype: {nearest(dtype, [*DTYPES, 'auto'])}")
    return DTYPES[dtype]


def require_location(location: str) -> str:
    """Expand a local path and insist that it exists; leave a hub id (``owner/name``) as it is."""
    folder = Path(location).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} has no config.json, so it is no model folder (or one half-written)")
        return str(folder)
    if folder.exists():
        raise CheckpointError(f"{folder} is a file; give the model's folder or a hub id")
    looks_like_path = folder.is_absolute() or location.startswith((".", "~")) or location.count("/") != 1
    if looks_like_path or (os.environ.get("HF_HUB_OFFLINE") == "1" and not _is_cached(location)):
        raise CheckpointError(f"no model at {location!r}: give an existing folder or a hub id such as owner/name")
    return location


def _is_cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)


def _unreadable(location: str, error: Exception, what: str = "a model") -> str:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{location} cannot be read as {what} with safetensors weights ({first_line}); fetch or save it again"


def _refuse_incomplete(location: str, report: dict[str, Any]) -> None:
    """Transformers fills missing weights with random numbers and only warns; a silent stranger must not join."""
    lost = [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
    if lost:
        raise CheckpointError(
            f"{location} lacks {len(lost)} of its weights, or has them in another shape (first: {sorted(lost)[0]}); "
            "it is half-written or belongs to another architecture: fetch or save it again"
        )
