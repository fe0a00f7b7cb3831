"""An ensemble file: models with tokenizers of their own, and how they write one answer; and those models, loaded."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.config import Settings, nearest, read_yaml
from fusionroute.errors import SettingsError
from fusionroute.models.loading import (
    Dtype,
    Loaded,
    ModelReference,
    check_place,
    full_model,
    load_config,
    load_model,
    load_tokenizer,
    require_location,
)
from fusionroute.models.member import Member
from fusionroute.models.opening import OpenedFormat
from fusionroute.models.prompt import PromptFormat, PromptName
from fusionroute.models.size import check_fit
from fusionroute.models.team import check_names
from fusionroute.models.vocabulary import Pieces, eos_ids

SAFE, AVERAGING = "safe", "averaging"
HOSTS = ("unite", "gac")
SHARPENINGS = ("none", "prefix", "geometric")
FILE_ENDINGS = (".yaml", ".yml")
DRAFT_LENGTH, GATE, THRESHOLD = 5, 0.5, 0.1


def _one_of(*allowed: str) -> BeforeValidator:
    def known(value: Any) -> Any:
        if isinstance(value, bool):
            words = "on, yes and true" if value else "off, no and false"
            raise ValueError(f"YAML reads {words} as a truth value, which is none of {', '.join(allowed)}")
        if value not in allowed:
            raise ValueError(nearest(value, allowed))
        return value

    return BeforeValidator(known)


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):  # Python counts with them, and so does pydantic
        raise ValueError("a number is needed, not a truth value")
    return value


NUMBER = BeforeValidator(_no_truth_value)


class EnsembleOptions(Settings):
    """How models with tokenizers of their own write one answer.

    Attributes:
        method: ``safe`` asks the host only where that is safe and useful, ``averaging`` at every token.
        drafter: the model whose tokens are the answer's; the one that does best alone.
        host: how distributions over different tokens are averaged.
        draft_length: tokens that are drafted before the others look; None = 5. Of ``safe`` alone.
        sharpening: what is done to an average that is too flat; None = ``prefix`` for ``safe``, else ``none``.
        threshold: of ``prefix``: how likely a string must be to be given what its longer ones have; None = 0.1.
        weights: of every model, by name; None = all the same.
        gate: of ``gac`` alone: the drafter writes alone where it is as sure as this; None = the others are asked
            anyway.
    """

    method: Annotated[str, _one_of(SAFE, AVERAGING)] = SAFE
    drafter: str | None = None
    host: Annotated[str, _one_of(*HOSTS)] = "unite"
    draft_length: Annotated[int | None, NUMBER] = Field(None, ge=1)
    sharpening: Annotated[str, _one_of(*SHARPENINGS)] | None = None
    threshold: Annotated[float, NUMBER] = Field(THRESHOLD, gt=0, lt=1)
    weights: dict[str, Annotated[float, NUMBER]] | None = None
    gate: Annotated[float | None, NUMBER] = Field(GATE, gt=0, le=1)

    @field_validator("threshold", mode="before")
    @classmethod
    def _none_is_the_default(cls, threshold: Any) -> Any:
        return THRESHOLD if threshold is None else threshold

    @field_validator("weights")
    @classmethod
    def _weights_mean_something(cls, weights: dict[str, float] | None) -> dict[str, float] | None:
        for name, weight in (weights or {}).items():
            if weight < 0:
                raise ValueError(f"{name!r} has {weight}; weights are 0 or more")
        if weights is not None and sum(weights.values()) <= 0:
            raise ValueError("they are all 0; give at least one model a weight above 0, or leave weights out")
        return weights

    @model_validator(mode="after")
    def _no_option_is_idle(self) -> Self:
        if self.method != SAFE and self.draft_length is not None:
            raise ValueError(
                f"draft_length is of method safe; {self.method} asks every model at every token: leave it out"
            )
        if self.host != "gac" and "gate" in self.model_fields_set and self.gate is not None:
            raise ValueError(f"gate is of host gac; {self.host} has none: leave it out, or choose host: gac")
        return self

    def problem(self, names: Collection[str]) -> str | None:
        """What is wrong with these options for models of these names; None if nothing is."""
        if self.drafter is not None and self.drafter not in names:
            return f"drafter: {nearest(self.drafter, names)}"
        for name in self.weights or ():
            if name not in names:
                return f"weights: {nearest(name, names)}"
        for name in names if self.weights is not None else ():
            if name not in self.weights:  # type: ignore[operator]
                return f"weights: {name!r} has none; give every model one, 0 where it is to be left out"
        return None

    def require_drafter(self, names: Collection[str]) -> str:
        """The drafter's name. Raises `SettingsError` if none was chosen."""
        if self.drafter is None:
            raise SettingsError(
                f"drafter is missing; name the model that does best alone, one of {', '.join(names)}, or let "
                "fusionroute calibrate choose it on prompts of yours"
            )
        return self.drafter

    def keywords(self) -> dict[str, Any]:
        """What the method's class takes beside the members."""
        sharpening = self.sharpening or ("prefix" if self.method == SAFE else "none")
        given: dict[str, Any] = {
            "drafter": self.drafter,
            "host": self.host,
            "weights": self.weights,
            "sharpening": sharpening,
            "threshold": self.threshold,
        }
        if self.method == SAFE:
            given["draft_length"] = self.draft_length or DRAFT_LENGTH
        if self.host == "gac":
            given["gate"] = self.gate
        return given


def _named(models: Any) -> Any:
    if not isinstance(models, Mapping):
        raise ValueError("models map names to models, such as {qwen: owner/name, llama: owner/other}")
    if len(models) < 2:
        raise ValueError(f"an ensemble has at least two models; got {len(models)}")
    check_names(list(models))
    for name, value in models.items():
        if not isinstance(value, (str, Mapping, ModelReference)):
            raise ValueError(f"{name!r} is {value!r}; give a folder, a hub id, or {{model: …, device: …}}")
    return {name: {"model": value} if isinstance(value, str) else value for name, value in models.items()}


class EnsembleSettings(EnsembleOptions):
    """An ensemble file."""

    models: Annotated[dict[str, ModelReference], BeforeValidator(_named)]
    prompt: PromptName = None  # of every model: chat_template (each its own), a named template, or text as it is
    device: str | None = None  # of models that name none of their own, as here below
    dtype: str | None = None

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if problem := self.problem(self.models):
            raise ValueError(problem)
        return self

    @classmethod
    def read(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> Self:
        """An ensemble file, with some of what it says changed; see `with_changes`.

        Raises:
            SettingsError: no such file, or what is wrong in it.
        """
        values = read_yaml(path)
        if "experts" in values and "models" not in values:
            raise SettingsError(
                f"{path} names experts, so it is a team file or a compare file: train that team first and give its "
                "folder; an ensemble file names models"
            )
        return cls.parse(with_changes(values, changes or {}), source=str(path))


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What an ensemble file says, changed.

    Args:
        changes: by key. A dotted one such as ``weights.qwen`` or ``models.qwen.device`` changes that alone, any other
            replaces all that stood there.

    Raises:
        SettingsError: a dotted key inside of what holds no options.
    """
    changed = dict(values)
    for key, new in changes.items():
        *parents, last = key.split(".")
        place = changed
        for parent in parents:
            inner = place.get(parent)
            if parents == ["models", parent] and isinstance(inner, str):
                inner = {"model": inner}  # as it might have been written
            if not isinstance(inner, Mapping | None):
                raise SettingsError(f"{key}: {parent!r} holds no options of its own; it is {inner!r}")
            place[parent] = dict(inner or {})
            place = place[parent]
        place[last] = new
    return changed


def is_ensemble_file(location: str | Path) -> bool:
    """Whether a location is meant as an ensemble file; anything else is a team's folder or hub id."""
    return str(location).lower().endswith(FILE_ENDINGS)


@dataclass(frozen=True)
class Voice:
    """All of a member but its weights: what its tokens write, and how it reads prompts."""

    tokenizer: PreTrainedTokenizerBase
    pieces: Pieces
    prompt: PromptFormat


def load_voice(name: str, reference: ModelReference, prompt: str | None) -> Voice:
    """What can be told of a member before its weights are read.

    Raises:
        CheckpointError: it is not there.
        VocabularyError: its tokenizer cannot be aligned with others, or it has no end of sequence.
        SettingsError: ``prompt`` is no format that its tokenizer has.
    """
    tokenizer, config = load_tokenizer(reference), load_config(reference)
    pieces = Pieces(
        tokenizer,
        name=name,
        vocabulary_size=config.get_text_config().vocab_size,
        eos_ids=_eos_ids(reference, config),
    )
    try:
        return Voice(tokenizer, pieces, OpenedFormat(pieces, prompt))
    except SettingsError as error:
        raise SettingsError(f"model {name!r}: {error}") from None


def load_voices(models: Mapping[str, ModelReference], prompt: str | None) -> dict[str, Voice]:
    """`load_voice` for each of them."""
    return {name: load_voice(name, reference, prompt) for name, reference in models.items()}


def load_members(
    models: Mapping[str, ModelReference],
    voices: Mapping[str, Voice],
    *,
    dtype: Dtype = None,
    device: str | None = None,
    loaded: Loaded | None = None,
) -> list[Member]:
    """The members, weights and all, in the order of ``models``; adapters over one base share its weights.

    Raises:
        CheckpointError, SettingsError: as `load_model` does, the latter before any weights are read.
        ModelsTooLargeError: they do not fit into what their devices have free.
    """
    for reference in models.values():
        check_place(reference, dtype=dtype, device=device)
    check_fit(models, dtype=dtype, device=device, loaded=loaded)
    loaded = {} if loaded is None else loaded
    return [
        _member(name, load_model(reference, dtype=dtype, device=device, loaded=loaded), voices[name])
        for name, reference in models.items()
    ]


def in_order(names: Iterable[str], drafter: str) -> list[str]:
    """The drafter first, the others as they come."""
    return [drafter, *(name for name in names if name != drafter)]


def _member(name: str, model: PreTrainedModel, voice: Voice) -> Member:
    """What was told from the files is kept if the model says the same."""
    size = model.config.get_text_config().vocab_size
    if size == voice.pieces.vocabulary_size and eos_ids(model) <= voice.pieces.end_ids:
        return Member(name=name, model=model, pieces=voice.pieces, prompt=voice.prompt)
    return Member.of(name, model, voice.tokenizer, voice.prompt.name)


def _eos_ids(reference: ModelReference, config: PreTrainedConfig) -> set[int]:
    """The ids that will end an answer once the model is loaded: its generation config's, else its config's."""
    place = full_model(reference)
    try:
        location, revision = require_location(place.model), place.revision or "main"
        value = GenerationConfig.from_pretrained(location, revision=revision).eos_token_id
    except OSError:  # it has none, and transformers will make one of its config
        value = getattr(config.get_text_config(), "eos_token_id", None)
    return set(value) if isinstance(value, (list, tuple)) else set() if value is None else {value}
