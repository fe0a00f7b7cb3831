"""Do these models belong together? Asked of configs and tokenizers alone, before any weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from fusionroute.errors import SettingsError
from fusionroute.models.loading import ModelReference, load_config, load_tokenizer
from fusionroute.models.team import context_length
from fusionroute.models.vocabulary import check_models, check_tokenizers


@dataclass(frozen=True)
class Basis:
    """What all models of a team share: one tokenizer, and the context of the smallest."""

    tokenizer: PreTrainedTokenizerBase
    context_length: int


@dataclass(frozen=True)
class _WithoutWeights:
    """Stands for a model where only its config is asked."""

    config: PreTrainedConfig


def check_models_fit(router: ModelReference, experts: Mapping[str, ModelReference]) -> Basis:
    """Read every config and tokenizer and insist on one vocabulary.

    Raises:
        CheckpointError: a model is missing, or has no readable config or tokenizer.
        VocabularyError: naming the model that differs.
    """
    tokenizer = load_tokenizer(router)
    check_tokenizers(tokenizer, {name: load_tokenizer(reference) for name, reference in experts.items()})
    # cast: check_models and context_length read nothing but .config
    base = cast(Any, _WithoutWeights(load_config(router)))
    others = {name: cast(Any, _WithoutWeights(load_config(reference))) for name, reference in experts.items()}
    check_models(base, others, len(tokenizer))
    return Basis(tokenizer, min(context_length(model) for model in (base, *others.values())))


def training_length(basis: Basis, asked: int | None) -> int:
    """The longest example: what was asked, else the smallest context. Raises `SettingsError` if it does not fit."""
    if asked is not None and asked > basis.context_length:
        raise SettingsError(
            f"data.max_length is {asked} but a model of the team holds only {basis.context_length} positions; lower it"
        )
    return asked or basis.context_length
