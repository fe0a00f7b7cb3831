"""A team written as one checkpoint that vLLM serves: weights linked or copied as they are, never all in memory."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from fusionroute.environment import versions
from fusionroute.errors import CheckpointError, OutputExistsError
from fusionroute.models.export_format import (
    ARCHITECTURE,
    HEAD_FILE,
    MODEL_TYPE,
    ROUTE_HEAD,
    ExportedExpert,
    ExportedTeam,
    folder_of,
    is_below,
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
from fusionroute.models.team import expert_references, read_team_file, team_folder
from fusionroute.models.vocabulary import ROUTER, check_models, check_tokenizers, eos_ids
from fusionroute.output import new_folder, refuse_existing, write_json, write_text
from fusionroute.progress import Progress, Silent

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
MEGABYTE = 2**20
PIECE = 64 * MEGABYTE
# What keeps a file from being linked but not from being copied: another file system, one without links, or too many
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EMLINK)
CARD = """---
library_name: vllm
tags: [fusionroute, token-level-collaboration]
---
# {name}

A FusionRoute team (arXiv 2601.05106) as one checkpoint: a router and the experts {experts}, in the order of the route
head. {how}.

    pip install vllm fusionroute
    {serve}

Written by fusionroute {version}.
"""


@dataclass
class Exported:
    """What was done.

    Attributes:
        linked, copied, merged: names of the models whose weights share the disk with the original, were copied, and
            were merged from an adapter and its base.
        notes: what its user should know, a sentence each.
        dtype: the narrowest precision that holds the weights of all models.
    """

    linked: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dtype: str = "float32"

    def serve(self, folder: str | Path) -> str:
        """The command that serves it. vLLM takes float32 for a mistake, and rounds it unless it is asked for."""
        return f"vllm serve {folder}" + (" --dtype float32" if self.dtype == "float32" else "")


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
        OutputExistsError: ``output`` holds something and ``overwrite`` is False; or it is, holds or lies inside the
            team or one of its models.
        SettingsError: ``output`` cannot be written.
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
    _refuse_sources(output, folder, parts)
    configs = {name: load_config(reference) for name, reference in parts.items()}
    _check(configs, head)
    tokenizer = load_tokenizer(router)
    check_tokenizers(tokenizer, {name: load_tokenizer(reference) for name, reference in experts.items()})
    _check_vocabulary(configs, len(tokenizer))

    done = Exported(dtype=_common_dtype(configs))
    with new_folder(output, overwrite=overwrite) as target:
        # As bytes: what safetensors itself writes into a file only its owner may read
        (target / HEAD_FILE).write_bytes(save({f"{ROUTE_HEAD}.{name}": tensor for name, tensor in head.items()}))
        names = _write_weights(target, parts, configs, done, copy=copy, progress=progress or Silent())
        done.notes += _write_tokenizer(target, tokenizer, team_file.prompt)
        ends = sorted(set().union(*(_eos_ids(parts[name], configs[name]) for name in parts)))
        special = _special_ids(tokenizer, ends)
        write_json(target / GENERATION_CONFIG, special)
        write_text(target / "README.md", _card(Path(output).resolve().name, list(experts), done, complement=complement))
        ours = ExportedTeam(
            router=_raw_config(router),
            experts=tuple(
                ExportedExpert(name=name, folder=folder_of(name), config=_raw_config(reference))
                for name, reference in experts.items()
            ),
            route_head_bias="bias" in head,
            weight_files=whole_sizes(target, [HEAD_FILE, *names]),
        )
        # The last file: a folder without it is no model to anybody
        write_json(target / CONFIG, _config(ours, done.dtype, special, complement=complement))
    return done


def _config(team: ExportedTeam, dtype: str, special: dict[str, Any], *, complement: bool) -> dict[str, Any]:
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "dtype": dtype,
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


def _card(name: str, experts: list[str], done: Exported, *, complement: bool) -> str:
    how = (
        "The router's log-probabilities are added to those of the expert that it picks for each token"
        if complement
        else "The router picks an expert for each token, which writes alone"
    )
    return CARD.format(
        name=name,
        experts=", ".join(experts),
        how=how,
        serve=done.serve(name),
        version=versions()["fusionroute"],
    )


# --- what is refused --------------------------------------------------------------------------------------------------


def _refuse_sources(output: str | Path, team: Path, parts: Mapping[str, ModelReference]) -> None:
    """To replace what it is made of is a loss, also where overwriting was asked for."""
    target = Path(output).resolve()
    for what, source in [("the team", team.resolve()), *_places(parts)]:
        if target == source or target in source.parents:
            relation = "is" if target == source else "holds"
        elif source in target.parents:
            relation = "lies inside"
        else:
            continue
        raise OutputExistsError(f"{output} {relation} {what} ({source}); export into a folder of its own")


def _places(parts: Mapping[str, ModelReference]) -> Iterator[tuple[str, Path]]:
    """Every folder that a model is read from; of symbolic links, as the hub's cache has, both ends."""
    for name, reference in parts.items():
        adapter, full = adapter_at(reference), full_model(reference)
        if adapter is not None:
            yield _called(name), adapter.folder.resolve()
        what = _called(name) if adapter is None else f"the base of {_called(name)}"
        if (config := _file(full, CONFIG)) is not None:
            yield what, config.parent.resolve()
            yield what, config.resolve().parent


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
    sources = {name: {} if adapter_at(each) else _weight_files(each) for name, each in parts.items()}
    progress.start(
        "exporting, MB", max(1, sum(_megabytes(path) for each in sources.values() for path in each.values()))
    )
    for name, files in sources.items():
        place = target / folder_of(name)
        place.mkdir(parents=True)
        if not files:
            _write_merged(parts[name], configs[name], place, (target / HEAD_FILE).stat().st_mode)
            done.merged.append(name)
        else:
            links = [_link_or_copy(path, place / at, name, progress, copy=copy) for at, path in files.items()]
            (done.linked if all(links) else done.copied).append(name)
    folders = [target / folder_of(name) for name in parts]
    return [path.relative_to(target).as_posix() for at in folders for path in sorted(at.rglob("*")) if path.is_file()]


def _weight_files(reference: ModelReference) -> dict[str, Path]:
    """The files that transformers would read, by their names in the model's folder, fetched if need be.

    Raises `CheckpointError` if it could not read them.
    """
    single = _file(reference, SAFE_WEIGHTS_NAME)
    index = None if single else _file(reference, SAFE_WEIGHTS_INDEX_NAME)
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


def _tensor_names(path: Path) -> set[str]:
    """What stands in a file. Its header says how long it must be, so that one cut short is found here too."""
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is corrupt ({error}); fetch or save the model again") from error


def _link_or_copy(source: Path, target: Path, note: str, progress: Progress, *, copy: bool) -> bool:
    """Is it a link? Between file systems, and on those that know none, it is a copy."""
    source = source.resolve()  # the hub's cache holds symbolic links
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy or not _linked(source, target):
        _copy(source, target, note, progress)
        return False
    progress.advance(_megabytes(source), note)
    return True


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        return False
    return True


def _copy(source: Path, target: Path, note: str, progress: Progress) -> None:
    # "x": a file that is there may be a link to an original
    with source.open("rb") as reader, target.open("xb") as writer:
        while piece := reader.read(PIECE):
            writer.write(piece)
            progress.advance(len(piece) // MEGABYTE, note)


def _megabytes(path: Path) -> int:
    return path.stat().st_size // MEGABYTE


def _write_merged(reference: ModelReference, config: PreTrainedConfig, place: Path, mode: int) -> None:
    """An adapter merged into its base, in memory alone; what is not weights is not kept."""
    merged = load_model(reference.model_copy(update={"device": "cpu"}), dtype=_dtype(config), merge_adapter=True)
    save_model(merged, place)
    for path in place.iterdir():
        if not path.name.startswith("model"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            path.chmod(mode)


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
