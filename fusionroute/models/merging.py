"""Several fine-tunes of one base merged into one normal checkpoint: the baselines that need no routing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from fusionroute.environment import versions
from fusionroute.errors import CheckpointError, SettingsError
from fusionroute.models.adapters import known_by
from fusionroute.models.loading import (
    Dtype,
    ModelReference,
    as_reference,
    full_model,
    load_model,
    load_tokenizer,
    require_location,
    resolve_dtype,
    save_model,
)
from fusionroute.models.vocabulary import check_tokenizers
from fusionroute.ops.merging import MergeSettings, merge
from fusionroute.output import new_folder, write_text

Reference = str | Path | ModelReference
OnTensor = Callable[[str, int, int], None]  # its name, how many are done, of how many

# What a model computes with its weights: where this differs, the mean of two models is neither
ARCHITECTURE = (
    "model_type", "hidden_act", "hidden_activation", "num_attention_heads", "num_key_value_heads", "head_dim",
    "rope_parameters", "rms_norm_eps", "layer_norm_eps", "sliding_window", "layer_types", "query_pre_attn_scalar",
    "attn_logit_softcapping", "final_logit_softcapping", "num_experts_per_tok", "tie_word_embeddings",
)  # fmt: skip
FORMULAS = {
    "task_arithmetic": "base + {scale} × Σ (expert − base)",
    "ties": "base + {scale} × the mean of those entries of (expert − base), the largest {density} of each tensor, "
    "whose sign is that of their sum (TIES, arXiv 2306.01708, trimmed tensor by tensor)",
    "dare": "base + {scale} × Σ (expert − base), of which a random {drop_rate} of all entries is dropped and the rest "
    "divided by 1 − {drop_rate} (DARE, arXiv 2311.03099; seed {seed})",
}
CARD = """---
library_name: transformers
tags: [merge, {method}]
---
# {title}

A merge by fusionroute {version}, method {method}: {formula}.

| role | model | revision |
|---|---|---|
{rows}

A normal transformers checkpoint. Tokenizer, prompt format and generation settings are those of the base.
"""


def merge_models(
    base: Reference,
    experts: Mapping[str, Reference],
    settings: MergeSettings,
    *,
    dtype: Dtype = None,
    trust_remote_code: bool = False,
    on_tensor: OnTensor = lambda name, done, total: None,
) -> PreTrainedModel:
    """The base with the experts merged into it, on the CPU; every parameter is merged, tied ones once.

    Checkpoints stay in their files until a tensor is due (safetensors maps them into memory), so beside the merged
    model memory holds one tensor of each model at a time; of an expert that is an adapter, also the weights it changes.

    Args:
        base: hub id or folder; what the experts were fine-tuned from.
        experts: hub ids or folders (adapters too) by name.
        dtype: of the result; None is that of the base. The arithmetic is in float32 either way.
        on_tensor: told before each tensor.

    Raises:
        SettingsError: no experts, or peft is missing.
        CheckpointError: a model cannot be read or has other tensors, shapes or arithmetic than the base.
        VocabularyError: tokenizers that do not agree.
    """
    if not experts:
        raise SettingsError("no experts to merge; give at least one by name")
    wanted = resolve_dtype(dtype)
    _check_tokenizers(base, experts, trust_remote_code)
    merged = _load(base, trust_remote_code)
    tuned = {name: _load(reference, trust_remote_code) for name, reference in experts.items()}
    for name, expert in tuned.items():
        _check_fit(f"the base {_place(base)}", merged, f"expert {name!r} ({_place(experts[name])})", expert)
    theirs = [dict(expert.named_parameters()) for expert in tuned.values()]
    parameters = dict(merged.named_parameters())
    for done, (name, parameter) in enumerate(parameters.items()):
        on_tensor(name, done, len(parameters))
        # In its place, and not into it: that would copy the mapped file into memory first
        parameter.data = _merged(name, parameter, [each[name] for each in theirs], settings, wanted)
    return known_by(merged, "")


def merge_into_folder(
    base: Reference,
    experts: Mapping[str, Reference],
    settings: MergeSettings,
    output: str | Path,
    *,
    dtype: Dtype = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    on_tensor: OnTensor = lambda name, done, total: None,
) -> None:
    """`merge_models`, written as a normal checkpoint with the base's tokenizer and a card that says what it is.

    Raises:
        OutputExistsError: ``output`` holds something already; and what `merge_models` raises.
    """
    with new_folder(output, overwrite=overwrite) as folder:
        merged = merge_models(
            base, experts, settings, dtype=dtype, trust_remote_code=trust_remote_code, on_tensor=on_tensor
        )
        save_model(merged, folder)
        load_tokenizer(base, trust_remote_code=trust_remote_code).save_pretrained(folder)
        write_text(folder / "README.md", merge_card(Path(output).name, base, experts, settings))


def merge_card(title: str, base: Reference, experts: Mapping[str, Reference], settings: MergeSettings) -> str:
    """Markdown for ``README.md``: what was merged, and by which formula."""
    references = {"base": as_reference(base)} | {f"expert {name}": as_reference(each) for name, each in experts.items()}
    rows = "\n".join(f"| {role} | {each.model} | {each.revision or 'default'} |" for role, each in references.items())
    values = settings.model_dump()
    formula = FORMULAS[settings.method].format(**values)
    version = versions()["fusionroute"]
    return CARD.format(title=title, version=version, method=settings.method, formula=formula, rows=rows)


def _load(reference: Reference, trust_remote_code: bool) -> PreTrainedModel:
    """A model in the dtype of its file: any other would be a copy in memory."""
    reference = as_reference(reference)
    read: Any = load_model(
        reference.model_copy(update={"device": "cpu"}),
        dtype=_own_dtype(reference, trust_remote_code),
        trust_remote_code=trust_remote_code,
        merge_adapter=True,
    )
    return read


def _own_dtype(reference: ModelReference, trust_remote_code: bool) -> torch.dtype | None:
    whole = full_model(reference)
    try:
        config = AutoConfig.from_pretrained(
            require_location(whole.model), revision=whole.revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError):
        return None  # `load_model` says what is wrong with it
    return config.get_text_config().dtype


def _merged(
    name: str, base: Tensor, experts: list[Tensor], settings: MergeSettings, dtype: torch.dtype | None
) -> Tensor:
    """In float32 up to the wanted dtype, so that nothing is rounded twice."""
    precise = base.detach().to(torch.promote_types(base.dtype, torch.float32))
    return merge(precise, [expert.detach() for expert in experts], settings, name=name).to(dtype or base.dtype)


def _check_tokenizers(base: Reference, experts: Mapping[str, Reference], trust_remote_code: bool) -> None:
    tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code)
    others = {
        name: load_tokenizer(reference, trust_remote_code=trust_remote_code) for name, reference in experts.items()
    }
    check_tokenizers(tokenizer, others)


def _check_fit(base_name: str, base: PreTrainedModel, expert_name: str, expert: PreTrainedModel) -> None:
    """Names both models and the first thing that differs."""
    mine, theirs = (model.config.get_text_config().to_dict() for model in (base, expert))
    for key in ARCHITECTURE:
        if mine.get(key) != theirs.get(key):
            raise CheckpointError(
                f"{expert_name} has {key} {theirs.get(key)!r}, {base_name} has {mine.get(key)!r}: they compute "
                "differently, so their weights cannot be added; merge models fine-tuned from one base"
            )
    wanted, found = dict(base.named_parameters()), dict(expert.named_parameters())
    for name in dict.fromkeys([*wanted, *found]):
        _check_tensor(name, base_name, wanted.get(name), expert_name, found.get(name))


def _check_tensor(name: str, base_name: str, wanted: Any, expert_name: str, found: Any) -> None:
    if wanted is None or found is None:
        has, lacks = (expert_name, base_name) if wanted is None else (base_name, expert_name)
        raise CheckpointError(f"{has} has a tensor {name} and {lacks} has none; merge models fine-tuned from one base")
    if wanted.shape != found.shape:
        raise CheckpointError(
            f"{name} is {list(found.shape)} in {expert_name} and {list(wanted.shape)} in {base_name}; merge models "
            "fine-tuned from one base whose vocabulary was not changed"
        )
    for tensor, owner in ((wanted, base_name), (found, expert_name)):
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise CheckpointError(f"{name} of {owner} is quantised ({tensor.dtype}); merge the unquantised model")


def _place(reference: Reference) -> str:
    return as_reference(reference).model
