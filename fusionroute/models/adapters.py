"""Models that are a small adapter over a base: how they are recognised, loaded, made and written.

Every adapted model has modules of its own, while the modules of all models over one base hold the same tensors. So the
base stands in memory once, nothing is switched from one model to the next, and none can see another's adapter.
"""

import copy
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import cached_file, find_adapter_config_file

from fusionroute.errors import CheckpointError, SettingsError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
GENERATION_FILE = "generation_config.json"
NAME = "default"  # of the only adapter of each model, as peft calls it
KINDS = ("LORA", "LOHA", "LOKR")  # all they do is add to weights
REWRITE_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")  # values of init_lora_weights


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter on disk.

    Attributes:
        location: hub id or folder, as it was asked for.
        revision: of ``location``, if that is a hub id.
        folder: where its files lie.
        base: hub id or folder of the model it was made for, and its revision.
    """

    location: str
    revision: str | None
    folder: Path
    base: str
    base_revision: str | None

    @property
    def weights(self) -> Path:
        """The file with its weights, fetched if need be. Raises `CheckpointError`."""
        try:
            return Path(cast(str, cached_file(self.location, WEIGHTS_FILE, revision=self.revision)))
        except OSError as error:
            raise CheckpointError(f"{self.location} has no {WEIGHTS_FILE}; save the adapter again") from error


def find_adapter(location: str, revision: str | None = None) -> AdapterFiles | None:
    """The adapter that stands at a hub id or folder; None for a model with weights of its own.

    Raises:
        CheckpointError: an adapter that names no base, or one of a kind that does not only add to weights.
    """
    path = find_adapter_config_file(location, revision=revision)
    if path is None:
        return None
    try:
        values = dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); save the adapter again") from error
    _refuse_other_kinds(location, values)
    if not values.get("base_model_name_or_path"):
        raise CheckpointError(f"{path} names no base; write its hub id or folder there as base_model_name_or_path")
    return AdapterFiles(
        location, revision, Path(path).parent, values["base_model_name_or_path"], values.get("revision")
    )


def _refuse_other_kinds(location: str, values: dict[str, Any]) -> None:
    kind, start = values.get("peft_type"), str(values.get("init_lora_weights")).lower()
    if "num_virtual_tokens" in values:
        reason = f"{kind} puts virtual tokens before the text, where the other models of a team have none"
    elif kind not in KINDS:
        reason = f"{kind} is not one of {', '.join(KINDS)}, which only add to the weights of their base"
    elif start.startswith(REWRITE_THE_BASE):
        reason = f"{start} also changes the weights of its base; convert it to a plain LoRA with peft"
    elif values.get("alora_invocation_tokens"):
        reason = "an activated LoRA works from a certain token on, which a shared cache cannot follow"
    elif values.get("task_type") not in (None, "CAUSAL_LM"):
        reason = f"it was made for {values['task_type']}; a team writes with CAUSAL_LM"
    else:
        return
    raise CheckpointError(f"the adapter {location} cannot join a team: {reason}")


def over_same_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A model with modules of its own that hold the same tensors.

    Moving, casting or adapting it leaves ``model`` alone; what writes into the tensors (training, merging) does not.
    """
    tensors: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for weight in model.parameters():
        tensors[id(weight)] = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    return copy.deepcopy(model, tensors)


def attach(base: PreTrainedModel, adapter: AdapterFiles) -> PreTrainedModel:
    """``base`` with the adapter put into its modules; only the adapter can be trained.

    Returns:
        A ``peft.PeftModel``, which answers for its base's attributes; ``name_or_path`` is the adapter's.

    Raises:
        CheckpointError: the adapter is unreadable, or was made for another architecture, shape or vocabulary.
    """
    peft = _peft(f"{adapter.location} is an adapter")
    try:
        config = peft.PeftConfig.from_pretrained(str(adapter.folder))
        config.inference_mode = False
        # On the meta device until the weights arrive: these take the place of parameters, and write into none
        model = _adapted(base, config, low_cpu_mem_usage=True)
        weights = _without_base(load_file(adapter.weights, device=str(base.device)), model, adapter.location)
        report = peft.set_peft_model_state_dict(model, weights, NAME, low_cpu_mem_usage=True)
        if (adapter.folder / GENERATION_FILE).is_file():
            base.generation_config = GenerationConfig.from_pretrained(adapter.folder)
    except CheckpointError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(_misfit(adapter, f"{type(error).__name__}: {error}")) from error
    lost = [*report.unexpected_keys, *(name for name, weight in model.named_parameters() if weight.is_meta)]
    if lost:
        raise CheckpointError(_misfit(adapter, f"{len(lost)} weights have no counterpart, first {sorted(lost)[0]}"))
    peft.functional.cast_adapter_dtype(model, NAME)
    return known_by(model, adapter.location, adapter.revision)


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """The base with the adapter added to its weights for good; whoever shares them would be changed too."""
    merged = cast(Any, model).merge_and_unload()
    return known_by(merged, location_of(model), revision_of(model))


def add_lora(
    lm: PreTrainedModel, *, rank: int, alpha: float, dropout: float = 0.0, targets: str | Sequence[str] = "all-linear"
) -> PreTrainedModel:
    """Put a new LoRA into ``lm``: it starts without effect and alone can be trained.

    Args:
        lm: loaded from a hub id or folder, by which the saved adapter will name its base.
        rank, alpha, dropout: of every adapted layer; B A x is scaled by alpha / rank.
        targets: ``"all-linear"`` (all but the LM head), a regular expression over module names, or names.

    Returns:
        A ``peft.PeftModel``; see `attach`.

    Raises:
        SettingsError: the targets are not in the model, or ``lm`` is an adapter itself.
    """
    peft = _peft("a router with LoRA")
    base = location_of(lm)
    if is_adapter(lm) or (base and find_adapter(base, revision_of(lm))):
        raise SettingsError(
            f"{base or 'the model'} is an adapter, and one over it would have no base to name; "
            "add the LoRA to its base, or merge it and save the result first"
        )
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=_absolute(base),
        revision=revision_of(lm),
    )
    try:
        return known_by(_adapted(lm, config), "")
    except ValueError as error:
        raise SettingsError(f"LoRA targets {targets!r} do not fit {type(lm).__name__}: {error}") from error


def save_adapter(model: Any, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write the adapter alone; the base stays where its config names it.

    By peft's own functions, but not its ``save_pretrained``: that asks the hub about the base and adds a blank card.

    Args:
        state_dict: of ``model``, instead of its live weights.

    Raises:
        SettingsError: the base was built in code, so that nothing could be loaded again.
    """
    peft = _peft("saving an adapter")
    name = model.active_adapter
    config = replace(model.peft_config[name], inference_mode=True)
    config.base_model_name_or_path = _absolute(config.base_model_name_or_path or "")
    if not config.base_model_name_or_path:
        raise SettingsError(
            "the base of the adapter was built in code and has no hub id or folder; save it and load it from there"
        )
    weights = peft.get_peft_model_state_dict(model, state_dict, name, save_embedding_layers=False)
    Path(folder).mkdir(parents=True, exist_ok=True)
    whole = {key: weight.detach().cpu().contiguous() for key, weight in weights.items()}
    save_file(whole, Path(folder) / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    model.generation_config.save_pretrained(folder)


def is_adapter(model: Any) -> bool:
    """Is this a ``peft.PeftModel``? Without importing peft: who has one has imported it."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def base_of(model: Any) -> str:
    """Hub id or folder of an adapter's base, "" for a model that is no adapter."""
    return str(model.peft_config[model.active_adapter].base_model_name_or_path or "") if is_adapter(model) else ""


def location_of(model: Any) -> str:
    """Hub id or folder that a model was loaded from, "" if it was built in code.

    Not ``model.name_or_path``: an adapter that peft loaded itself would answer with its base's.
    """
    return str(vars(model).get("name_or_path") or "")


def revision_of(model: Any) -> str | None:
    """The revision of `location_of` that was asked for, if any; transformers does not note it, so `known_by` does."""
    return vars(model).get("revision")


def known_by(model: Any, location: str, revision: str | None = None) -> Any:
    """``model``, with a note of where it was loaded from."""
    model.name_or_path, model.revision = location, revision
    return model


def _adapted(base: PreTrainedModel, config: Any, **options: Any) -> Any:
    from peft import PeftModelForCausalLM

    with warnings.catch_warnings():
        # peft 0.21 asks by the old name, which transformers 5.23 deprecates
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return PeftModelForCausalLM(base, config, NAME, **options)


def _absolute(location: str) -> str:
    return str(Path(location).resolve()) if location and Path(location).is_dir() else location


def _without_base(weights: dict[str, Tensor], model: Any, location: str) -> dict[str, Tensor]:
    """Adapters of embeddings are often saved with the base's beside them: dropped if they are indeed the base's."""
    own = model.state_dict()
    for key in weights.keys() & own.keys():
        saved, found = weights[key], own[key]
        if saved.shape != found.shape or not (
            torch.equal(saved.to(found.dtype), found) or torch.equal(saved, found.to(saved.dtype))
        ):
            raise CheckpointError(
                f"{location} replaces {key} of its base, {list(found.shape)} by {list(saved.shape)}: its vocabulary or "
                "embeddings were changed; merge it into its base and use the merged model"
            )
    return {key: weight for key, weight in weights.items() if key not in own}


def _misfit(adapter: AdapterFiles, reason: str) -> str:
    short = " ".join(reason.split())[:300]
    return f"the adapter {adapter.location} does not fit its base {adapter.base} ({short}); was it made for another?"


def _peft(what: str) -> Any:
    try:
        import peft
        import peft.functional
    except ImportError as error:
        raise SettingsError(f"{what}, which needs peft: pip install 'fusionroute[peft]'") from error
    return peft
