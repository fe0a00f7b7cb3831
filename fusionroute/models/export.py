"""A team written as one checkpoint that vLLM serves: weights linked or copied as they are, never all in memory."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from fusionroute.environment import versions
from fusionroute.errors import CheckpointError
from fusionroute.models.export_format import (
    ARCHITECTURE,
    HEAD_FILE,
    MODEL_TYPE,
    ROUTE_HEAD,
    ExportedExpert,
    ExportedTeam,
    whole_sizes,
)
from fusionroute.models.loading import (
    ModelReference,
    adapter_at,
    full_model,
    load_config,
    load_model,
    load_tokenizer,
    require_location,
    save_model,
)
from fusionroute.models.prompt import CHAT_TEMPLATE, TEMPLATES, PromptFormat
from fusionroute.models.router import load_route_head
from fusionroute.models.team import EXPERTS_FOLDER, expert_references, read_team_file, team_folder
from fusionroute.models.vocabulary import ROUTER, check_models, check_tokenizers, eos_ids
from fusionroute.output import new_folder, refuse_existing, write_json, write_text
from fusionroute.progress import Progress, Silent

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
MEGABYTE = 2**20
PIECE = 64 * MEGABYTE
CARD = """---
library_name: vllm
tags: [fusionroute, token-level-collaboration]
---
# {name}

A FusionRoute team (arXiv 2601.05106) as one checkpoint: a router and the experts {experts}, in the order of the route
head. {how}.

    pip install vllm fusionroute
    vllm serve {name}

Written by fusionroute {version}.
"""


@dataclass
class Exported:
    """What was done.

    Attributes:
        linked, copied, merged: names of the models whose weights share the disk with the original, were copied, and
            were merged from an adapter and its base.
        notes: what its user should know, a sentence each.
    """

    linked: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def export_team(
    team: str | Path,
    output: str | Path,
    *,
    complement: bool = True,
    copy: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a team as one folder for ``vllm serve``.

    Weights are files as they were: hard links where the file system can, else copies. Only a model that is an adapter
    is loaded, alone, and merged into its base in the base's precision.

    Args:
        team: folder or hub id of a trained team.
        complement: False exports the routing-only team: the chosen expert writes alone.
        copy: never link, so that writing into the originals in place cannot change the export.

    Raises:
        OutputExistsError: ``output`` holds something and ``overwrite`` is False.
        CheckpointError: a model is missing, half-written, quantised or not a plain language model.
        VocabularyError: models that do not share one vocabulary.
        SettingsError: an adapter is to be merged and peft is missing.
    """
    refuse_existing(output, overwrite=overwrite)  # before the hub is asked for anything
    folder = team_folder(team)
    team_file = read_team_file(folder)
    router = ModelReference(model=str(folder / team_file.router))
    experts = expert_references(folder)
    parts = {ROUTER: router, **experts}
    head = load_route_head(Path(router.model))
    configs = {name: load_config(reference) for name, reference in parts.items()}
    _check(configs, head)
    tokenizer = load_tokenizer(router)
    check_tokenizers(tokenizer, {name: load_tokenizer(reference) for name, reference in experts.items()})
    _check_vocabulary(configs, len(tokenizer))

    done = Exported()
    with new_folder(output, overwrite=overwrite) as target:
        names = _write_weights(target, parts, configs, done, copy=copy, progress=progress or Silent())
        save_file({f"{ROUTE_HEAD}.{name}": tensor for name, tensor in head.items()}, target / HEAD_FILE)
        done.notes += _write_tokenizer(target, tokenizer, team_file.prompt)
        ends = sorted(set().union(*(_eos_ids(parts[name], configs[name]) for name in parts)))
        special = _special_ids(tokenizer, ends)
        write_json(target / GENERATION_CONFIG, special)
        write_text(target / "README.md", _card(Path(output).name, list(experts), complement=complement))
        ours = ExportedTeam(
            router=_raw_config(router),
            experts=tuple(
                ExportedExpert(name=name, folder=_folder_of(name), config=_raw_config(reference))
                for name, reference in experts.items()
            ),
            route_head_bias="bias" in head,
            weight_files=whole_sizes(target, [HEAD_FILE, *names]),
        )
        # The last file: a folder without it is no model to anybody
        write_json(target / CONFIG, _config(ours, configs, special, complement=complement))
    return done


def _config(
    team: ExportedTeam, configs: Mapping[str, PreTrainedConfig], special: dict[str, Any], *, complement: bool
) -> dict[str, Any]:
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "dtype": _common_dtype(configs),
        **special,
        "complement": complement,
        "team": team.model_dump(),
        "fusionroute_version": versions()["fusionroute"],
    }


def _common_dtype(configs: Mapping[str, PreTrainedConfig]) -> str:
    """The narrowest that holds the weights of all: vLLM runs every model in one."""
    return str(reduce(torch.promote_types, map(_dtype, configs.values()))).removeprefix("torch.")


def _dtype(config: PreTrainedConfig) -> torch.dtype:
    return cast(torch.dtype, config.dtype or torch.float32)


def _card(name: str, experts: list[str], *, complement: bool) -> str:
    how = (
        "The router's log-probabilities are added to those of the expert that it picks for each token"
        if complement
        else "The router picks an expert for each token, which writes alone"
    )
    return CARD.format(name=name, experts=", ".join(experts), how=how, version=versions()["fusionroute"])


# --- what is refused --------------------------------------------------------------------------------------------------


def _check(configs: Mapping[str, PreTrainedConfig], head: Mapping[str, Tensor]) -> None:
    for name, config in configs.items():
        if getattr(config, "quantization_config", None):
            raise CheckpointError(
                f"{_called(name)} is quantised; export a team of unquantised models and let vLLM quantise all of them "
                "(vllm serve --quantization)"
            )
        if config.get_text_config() is not config:
            raise CheckpointError(
                f"{_called(name)} ({config.model_type}) is no plain language model; save its text model and name that"
            )
    num_experts, hidden_size = head["weight"].shape
    if num_experts != len(configs) - 1:
        raise CheckpointError(
            f"the route head was trained for {num_experts} experts but the team names {len(configs) - 1}; name the "
            "experts it was trained with"
        )
    if hidden_size != configs[ROUTER].hidden_size:
        raise CheckpointError(
            f"the route head reads {hidden_size} features but the router has {configs[ROUTER].hidden_size}; the folder "
            "mixes two routers, save it again"
        )


def _check_vocabulary(configs: Mapping[str, PreTrainedConfig], tokenizer_size: int) -> None:
    models = {name: cast(Any, SimpleNamespace(config=config)) for name, config in configs.items()}
    check_models(models.pop(ROUTER), models, tokenizer_size)


def _called(name: str) -> str:
    return "the router" if name == ROUTER else f"expert {name!r}"


# --- weights ----------------------------------------------------------------------------------------------------------


def _write_weights(
    target: Path,
    parts: Mapping[str, ModelReference],
    configs: Mapping[str, PreTrainedConfig],
    done: Exported,
    *,
    copy: bool,
    progress: Progress,
) -> list[str]:
    """Every model's weights in a folder of its own; returns the names of the files, relative to ``target``."""
    sources = {name: [] if adapter_at(each) else _weight_files(each) for name, each in parts.items()}
    progress.start("exporting, MB", max(1, sum(_megabytes(path) for paths in sources.values() for path in paths)))
    names = []
    for name, paths in sources.items():
        place = target / _folder_of(name)
        place.mkdir(parents=True)
        if not paths:
            _write_merged(parts[name], configs[name], place)
            done.merged.append(name)
        else:
            links = [_link_or_copy(path, place / path.name, name, progress, copy=copy) for path in paths]
            (done.linked if all(links) else done.copied).append(name)
        names += [str(path.relative_to(target)) for path in sorted(place.iterdir())]
    return names


def _folder_of(name: str) -> str:
    return ROUTER if name == ROUTER else f"{EXPERTS_FOLDER}/{name}"


def _weight_files(reference: ModelReference) -> list[Path]:
    """The files that transformers would read, fetched if need be. Raises `CheckpointError` if it could not."""
    single = _file(reference, SAFE_WEIGHTS_NAME)
    index = None if single else _file(reference, SAFE_WEIGHTS_INDEX_NAME)
    if single:
        shards = [single]
    elif index:
        shards = [_shard(reference, name) for name in _shard_names(index)]
    else:
        raise CheckpointError(
            f"{reference.model} has no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME}; save it as safetensors"
        )
    for path in shards:
        _check_readable(path)
    return [index, *shards] if index else shards


def _shard_names(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is corrupt ({error!r}); fetch or save the model again") from error


def _shard(reference: ModelReference, name: str) -> Path:
    path = _file(reference, name)
    if path is None:
        raise CheckpointError(f"{reference.model} is half-written: {name} is missing; fetch or save it again")
    return path


def _file(reference: ModelReference, name: str) -> Path | None:
    found = cached_file(
        require_location(reference.model),
        name,
        revision=reference.revision,
        _raise_exceptions_for_missing_entries=False,
    )
    return Path(found) if found else None


def _check_readable(path: Path) -> None:
    """Of a file that is cut short, the header tells."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is corrupt ({error}); fetch or save the model again") from error


def _link_or_copy(source: Path, target: Path, note: str, progress: Progress, *, copy: bool) -> bool:
    """Is it a link? Between file systems, and on those that know none, it is a copy."""
    source = source.resolve()  # the hub's cache holds symbolic links
    try:
        if copy:
            raise OSError("asked for")
        os.link(source, target)
    except OSError:
        _copy(source, target, note, progress)
        return False
    progress.advance(_megabytes(source), note)
    return True


def _copy(source: Path, target: Path, note: str, progress: Progress) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while piece := reader.read(PIECE):
            writer.write(piece)
            progress.advance(len(piece) // MEGABYTE, note)


def _megabytes(path: Path) -> int:
    return path.stat().st_size // MEGABYTE


def _write_merged(reference: ModelReference, config: PreTrainedConfig, place: Path) -> None:
    """An adapter merged into its base, in memory alone; what is not weights is not kept."""
    merged = load_model(reference.model_copy(update={"device": "cpu"}), dtype=_dtype(config), merge_adapter=True)
    save_model(merged, place)
    for path in place.iterdir():
        if not path.name.startswith("model"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# --- text -------------------------------------------------------------------------------------------------------------


def _write_tokenizer(target: Path, tokenizer: PreTrainedTokenizerBase, prompt: str | None) -> list[str]:
    """The tokenizer with the team's prompt format as its chat template; returns what the user should know."""
    notes = []
    expected = PromptFormat(tokenizer, prompt)
    if prompt is None:
        tokenizer.chat_template = None
        notes.append("the team has no prompt format, so it answers completions only, not chats")
    elif prompt != CHAT_TEMPLATE:
        tokenizer.chat_template = _as_chat_template(tokenizer, TEMPLATES[prompt])
    if prompt is not None and not _renders_alike(tokenizer, expected):
        notes.append(
            f"vLLM encodes chats in the format {prompt!r} slightly differently than fusionroute does (white space at "
            "their beginning); give token ids where that matters"
        )
    tokenizer.save_pretrained(target)
    return notes


def _as_chat_template(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """With the tokens that the tokenizer puts around a text, which vLLM expects of the template."""
    inner, outer = (tokenizer("a", add_special_tokens=add).input_ids for add in (False, True))
    at = next((at for at in range(len(outer)) if outer[at : at + len(inner)] == inner), 0)
    before, after = outer[:at], outer[at + len(inner) :]
    return _literal(tokenizer, before) + template + _literal(tokenizer, after)


def _literal(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return f"{{{{ {json.dumps(''.join(tokenizer.convert_ids_to_tokens(ids)))} }}}}" if ids else ""


def _renders_alike(tokenizer: PreTrainedTokenizerBase, expected: PromptFormat) -> bool:
    """Does the chat template give what the team's own format does?"""
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids) == expected.encode(messages)


def _special_ids(tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> dict[str, Any]:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends or None, "pad_token_id": tokenizer.pad_token_id}
    return {name: value for name, value in ids.items() if value is not None}


def _eos_ids(reference: ModelReference, config: PreTrainedConfig) -> set[int]:
    """What ends an answer of this model, as when it is loaded: an adapter's own say comes before its base's."""
    for each in (reference, full_model(reference)):
        try:
            found = GenerationConfig.from_pretrained(require_location(each.model), revision=each.revision or "main")
        except OSError:
            continue
        return eos_ids(cast(Any, SimpleNamespace(generation_config=found)))
    return eos_ids(cast(Any, SimpleNamespace(generation_config=GenerationConfig.from_model_config(config))))


def _raw_config(reference: ModelReference) -> dict[str, Any]:
    """``config.json`` as it stands there: what it means is the business of the transformers that reads it."""
    path = _file(full_model(reference), CONFIG)
    if path is None:
        raise CheckpointError(f"{reference.model} has no {CONFIG}; fetch or save it again")
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return raw
