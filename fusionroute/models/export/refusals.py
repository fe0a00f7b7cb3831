"""What cannot be exported, or not there: told before anything is written."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedConfig

from fusionroute.errors import CheckpointError, OutputExistsError
from fusionroute.models.export.files import CONFIG, file_of
from fusionroute.models.loading import ModelReference, adapter_at, full_model
from fusionroute.models.vocabulary import ROUTER, check_models


def refuse_sources(output: str | Path, team: Path, parts: Mapping[str, ModelReference]) -> None:
    """To replace what it is made of is a loss, also where overwriting was asked for: raises `OutputExistsError`."""
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
        if (config := file_of(full, CONFIG)) is not None:
            yield what, config.parent.resolve()
            yield what, config.resolve().parent


def check_parts(configs: Mapping[str, PreTrainedConfig], head: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` for a model that vLLM could not run as a part, or a route head that is another team's."""
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


def check_vocabulary(configs: Mapping[str, PreTrainedConfig], tokenizer_size: int) -> None:
    """Raise `VocabularyError` for models that do not share one."""
    models = {name: cast(Any, SimpleNamespace(config=config)) for name, config in configs.items()}
    check_models(models.pop(ROUTER), models, tokenizer_size)


def _called(name: str) -> str:
    return "the router" if name == ROUTER else f"expert {name!r}"
