"""A team written as one checkpoint that vLLM serves: weights linked or copied as they are, never all in memory."""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import PreTrainedConfig

from fusionroute.environment import versions
from fusionroute.models.export.files import CONFIG, raw_config
from fusionroute.models.export.format import (
    ARCHITECTURE,
    HEAD_FILE,
    MODEL_TYPE,
    ROUTE_HEAD,
    ExportedExpert,
    ExportedTeam,
    folder_of,
    whole_sizes,
)
from fusionroute.models.export.refusals import check_parts, check_vocabulary, refuse_sources
from fusionroute.models.export.text import end_ids, special_ids, write_tokenizer
from fusionroute.models.export.weights import Exported, dtype_of, write_weights
from fusionroute.models.loading import (
    ModelReference,
    load_config,
    load_tokenizer,
)
from fusionroute.models.router import load_route_head
from fusionroute.models.team import expert_references, read_team_file, team_folder
from fusionroute.models.vocabulary import ROUTER, check_tokenizers
from fusionroute.output import new_folder, refuse_existing, write_json, write_text
from fusionroute.progress import Progress, Silent

GENERATION_CONFIG = "generation_config.json"
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
    refuse_sources(output, folder, parts)
    configs = {name: load_config(reference) for name, reference in parts.items()}
    check_parts(configs, head)
    tokenizer = load_tokenizer(router)
    check_tokenizers(tokenizer, {name: load_tokenizer(reference) for name, reference in experts.items()})
    check_vocabulary(configs, len(tokenizer))

    done = Exported(dtype=_common_dtype(configs))
    with new_folder(output, overwrite=overwrite) as target:
        # As bytes: what safetensors itself writes into a file only its owner may read
        (target / HEAD_FILE).write_bytes(save({f"{ROUTE_HEAD}.{name}": tensor for name, tensor in head.items()}))
        names = write_weights(target, parts, configs, done, copy=copy, progress=progress or Silent())
        done.notes += write_tokenizer(target, tokenizer, team_file.prompt)
        ends = sorted(set().union(*(end_ids(parts[name], configs[name]) for name in parts)))
        special = special_ids(tokenizer, ends)
        write_json(target / GENERATION_CONFIG, special)
        write_text(target / "README.md", _card(Path(output).resolve().name, list(experts), done, complement=complement))
        ours = ExportedTeam(
            router=raw_config(router),
            experts=tuple(
                ExportedExpert(name=name, folder=folder_of(name), config=raw_config(reference))
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
    return str(reduce(torch.promote_types, map(dtype_of, configs.values()))).removeprefix("torch.")


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
