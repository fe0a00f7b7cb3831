"""From a hub id or a folder to a live model, and back. safetensors only; remote code only if the user says so."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from fusionroute.config import Settings, nearest
from fusionroute.errors import CheckpointError, SettingsError
from fusionroute.models.adapters import (
    CONFIG_FILE,
    AdapterFiles,
    attach,
    find_adapter,
    is_adapter,
    known_by,
    merge,
    over_same_weights,
    save_adapter,
)

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CONFIG_FILES = ("config.json", CONFIG_FILE)  # every model folder has one of them
Dtype = torch.dtype | str | None
Loaded = dict[tuple[str, str | None, torch.dtype | None, torch.device], PreTrainedModel]


class ModelReference(Settings):
    """A model by name, as it stands in a team file: hub id or folder, and what loading it needs."""

    model: str
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False  # run the Python files that come with it, which some families need


def load_model(
    reference: str | Path | ModelReference,
    *,
    dtype: Dtype = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    loaded: Loaded | None = None,
    merge_adapter: bool = False,
) -> PreTrainedModel:
    """Load a causal LM in evaluation mode; what ``reference`` itself says of dtype and device comes first.

    Remote code is run if either the argument or ``reference`` asks for it.

    ``dtype=None`` keeps the checkpoint's own, except that float16 becomes float32 on CPU, where half precision is
    slower and coarser. Of an adapter, dtype and device are those of its base; see `attach` for what it becomes.

    Args:
        loaded: remembers the checkpoints that were read; models that name the same one, as adapters over one base do,
            share its weights. They must not be trained then, except for their adapters.
        merge_adapter: make an adapter part of the weights, as training all of them needs; such a model shares nothing.

    Raises:
        CheckpointError: the folder is missing, half-written or corrupt, or the weights are not safetensors; an adapter
            has no base, does not fit it, or is of a kind that cannot join a team.
        SettingsError: a dtype that is none, or a device that this machine lacks.
    """
    reference = as_reference(reference)
    trust_remote_code = trust_remote_code or reference.trust_remote_code
    adapter = adapter_at(reference)
    if adapter is None:
        return _checkpoint(reference, dtype, device, trust_remote_code, loaded)
    base = _checkpoint(_base(reference, adapter), dtype, device, trust_remote_code, None if merge_adapter else loaded)
    adapted = attach(base, adapter).eval()
    return merge(adapted) if merge_adapter else adapted


def _checkpoint(
    reference: ModelReference,
    dtype: Dtype,
    device: str | torch.device | None,
    trust_remote_code: bool,
    loaded: Loaded | None,
) -> PreTrainedModel:
    """A model with weights of its own, read from disk unless ``loaded`` has it."""
    location = require_location(reference.model)
    wanted, place = check_place(reference, dtype=dtype, device=device)
    if loaded is None:
        return _read_checkpoint(location, reference.revision, wanted, place, trust_remote_code)
    key = (location, reference.revision, wanted, place)
    if key not in loaded:
        loaded[key] = _read_checkpoint(*key, trust_remote_code)
    return over_same_weights(loaded[key])


def _read_checkpoint(
    location: str, revision: str | None, dtype: torch.dtype | None, device: torch.device, trust_remote_code: bool
) -> PreTrainedModel:
    read: Any
    try:
        read = AutoModelForCausalLM.from_pretrained(
            location,
            revision=revision,
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(_unreadable(location, error)) from error
    model, report = read
    _refuse_incomplete(location, report)
    _keep_soft_cap(model)
    if model.dtype == torch.float16 and device.type == "cpu" and dtype is None:
        model = model.float()
    return known_by(model.to(device).eval(), location, revision)


def load_tokenizer(
    reference: str | Path | ModelReference, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that stands beside a model, or beside the base of an adapter that has none.

    Raises `CheckpointError` as `load_model` does.
    """
    reference = as_reference(reference)
    trust_remote_code = trust_remote_code or reference.trust_remote_code
    adapter = adapter_at(reference)
    if adapter is not None and not _has_tokenizer(adapter):
        reference = _base(reference, adapter)
    location = require_location(reference.model)
    try:
        return AutoTokenizer.from_pretrained(location, revision=reference.revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(_unreadable(location, error, what="a tokenizer")) from error


def load_config(reference: ModelReference) -> PreTrainedConfig:
    """A model's config, of an adapter its base's. Raises `CheckpointError` if there is no model or it is unreadable."""
    reference = full_model(reference)
    location = require_location(reference.model)
    try:
        return AutoConfig.from_pretrained(
            location, revision=reference.revision, trust_remote_code=reference.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{location} has no readable config.json ({error}); fetch or save it again") from error


def save_model(model: PreTrainedModel, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write what `load_model` reads: a normal checkpoint, or of an adapter its own files alone.

    Args:
        state_dict: of ``model``, instead of its live weights; for training that shards them and gathers them here.
    """
    if is_adapter(model):
        save_adapter(model, folder, state_dict)
    else:
        model.save_pretrained(folder, state_dict=state_dict)


def adapter_at(reference: ModelReference) -> AdapterFiles | None:
    """The adapter at a reference; None for a model with weights of its own. Raises `CheckpointError`."""
    return find_adapter(require_location(reference.model), reference.revision)


def full_model(reference: ModelReference) -> ModelReference:
    """Where a model's config and all its weights stand: the reference itself, or the base of an adapter.

    Raises:
        CheckpointError: there is no model, or the base of an adapter is missing or an adapter too.
    """
    adapter = adapter_at(reference)
    return reference if adapter is None else _base(reference, adapter)


def _base(reference: ModelReference, adapter: AdapterFiles) -> ModelReference:
    base = reference.model_copy(update={"model": adapter.base, "revision": adapter.base_revision})
    try:
        is_another = adapter_at(base) is not None
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter.location} is an adapter whose base cannot be used: {error}; bring the base there, or write "
            f"where it is into {adapter.folder / CONFIG_FILE}"
        ) from error
    if is_another:
        raise CheckpointError(
            f"{adapter.location} is an adapter over {adapter.base}, which is an adapter itself; merge that one into "
            "its base, save it, and name the result as base"
        )
    return base


def _has_tokenizer(adapter: AdapterFiles) -> bool:
    found = cached_file(
        adapter.location,
        "tokenizer_config.json",
        revision=adapter.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None


def as_reference(reference: str | Path | ModelReference) -> ModelReference:
    return reference if isinstance(reference, ModelReference) else ModelReference(model=str(reference))


def default_device() -> str:
    """The accelerator of this machine if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None and torch.accelerator.is_available() else "cpu"


def check_place(
    reference: ModelReference, *, dtype: Dtype, device: str | torch.device | None
) -> tuple[torch.dtype | None, torch.device]:
    """The dtype and device that a model will have; what ``reference`` says of them comes first.

    Raises:
        SettingsError: a dtype that is none, or a device that this machine lacks.
    """
    return resolve_dtype(reference.dtype or dtype), resolve_device(reference.device or device)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """A device from its name, None being the best there is. Raises `SettingsError` if this machine lacks it."""
    wanted = str(device or default_device())
    try:
        # through a tensor, because cuda is a name for one of cuda:0, cuda:1, ...
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:  # the latter is torch's for a build without CUDA
        if wanted in (there := _devices()):
            raise
        raise SettingsError(f"device: there is no {wanted!r} on this machine; there is {', '.join(there)}") from error


def _devices() -> list[str]:
    kind = default_device()
    return (
        ["cpu"] if kind == "cpu" else ["cpu", kind, *(f"{kind}:{at}" for at in range(torch.accelerator.device_count()))]
    )


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
        if not any((folder / name).is_file() for name in CONFIG_FILES):
            raise CheckpointError(
                f"{folder} has no config.json (nor, as an adapter, {CONFIG_FILE}), so it is no model folder (or one "
                "half-written); give another, or write it again"
            )
        return str(folder)
    if folder.exists():
        raise CheckpointError(f"{folder} is a file; give the model's folder or a hub id")
    looks_like_path = folder.is_absolute() or location.startswith((".", "~")) or location.count("/") != 1
    if looks_like_path or (os.environ.get("HF_HUB_OFFLINE") == "1" and not _is_cached(location)):
        raise CheckpointError(f"no model at {location!r}: give an existing folder or a hub id such as owner/name")
    return location


def _is_cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(hub_id, name), str) for name in CONFIG_FILES)


def _unreadable(location: str, error: Exception, what: str = "a model") -> str:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{location} cannot be read as {what} with safetensors weights ({first_line}); fetch or save it again"


def _keep_soft_cap(model: PreTrainedModel) -> None:
    """Some releases of transformers read Gemma-2 with an attention that drops its soft cap without a word."""
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


def _refuse_incomplete(location: str, report: dict[str, Any]) -> None:
    """Transformers fills missing weights with random numbers and only warns; a silent stranger must not join."""
    lost = [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
    if lost:
        raise CheckpointError(
            f"{location} lacks {len(lost)} of its weights, or has them in another shape (first: {sorted(lost)[0]}); "
            "it is half-written or belongs to another architecture: fetch or save it again"
        )
