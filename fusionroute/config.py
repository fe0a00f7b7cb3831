"""Typed settings, YAML in and out. An unknown or misspelt key is an error that names the nearest right one."""

import difflib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fusionroute.errors import SettingsError


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``unknown option 'x'; did you mean 'y'? allowed: …`` — the one wording for every misspelt name."""
    allowed = list(allowed)
    close = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown option {name!r}; {hint}allowed: {', '.join(allowed)}"


class Settings(BaseModel):
    """Base of all settings: frozen, typed, strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, Mapping) else ():
            if key not in cls.model_fields:
                raise ValueError(nearest(key, cls.model_fields))
        return values

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "") -> Self:
        """Validate ``values``; ``source`` (a file name, say) opens the error message.

        Raises:
            SettingsError: one line naming every bad option, what came and what is allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(_one_line(error, source)) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read settings from a YAML file; relative paths inside stay relative to the working folder."""
        return cls.parse(read_yaml(path), source=str(path))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _one_line(error: ValidationError, source: str) -> str:
    problems = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        came = f" (got {item['input']!r})" if place and not isinstance(item["input"], Mapping) else ""
        problems.append(f"{place}: {message}{came}" if place else message)
    return (f"{source}: " if source else "") + "; ".join(problems)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys in silence; two experts of one name must not get through."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise SettingsError(f"{key!r} stands twice (line {line}); give each a name of its own")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a dict. Raises `SettingsError` for a missing file, bad YAML, or a key that stands twice."""
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"no settings file at {path}; give the path of a YAML file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path} holds {type(values).__name__}; it must hold a mapping, one `option: value` a line")
    return values


class GenerationSettings(Settings):
    """How an answer is decoded; names and meanings as in transformers' ``generate``."""

    max_new_tokens: int = Field(256, gt=0)
    do_sample: bool = False
    temperature: float | None = Field(None, ge=0)  # None = 1; 0 = greedy
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0)  # each sequence draws from this seed and its own positions alone
    stop: tuple[str, ...] = ()
    presence_penalty: float = Field(0, ge=-2, le=2)  # off a token's logit once it stands in the answer …
    frequency_penalty: float = Field(0, ge=-2, le=2)  # … and for every time that it does; see `ops.penalties`
    logprobs: int | None = Field(None, ge=0, le=100)  # None = off; n = the chosen token's and the n likeliest
    prompt_logprobs: int | None = Field(None, ge=0, le=20)  # the same of the prompt's own tokens
    candidates: int | None = Field(None, ge=0, le=20)  # the likeliest tokens of each distribution that took part
    ignore_eos: bool = False  # benchmarks need answers of equal length

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list_of_one(cls, value: Any) -> Any:
        value = (value,) if isinstance(value, str) else tuple(value or ())
        if any(text == "" for text in value):
            raise ValueError("an empty stop string would stop every answer at once; leave it out")
        return value

    @model_validator(mode="after")
    def _sampling_options_need_sampling(self) -> Self:
        idle = {"temperature": (None, 0.0, 1.0), "top_k": (None,), "top_p": (None, 1.0), "min_p": (None, 0.0)}
        for name, neutral in idle.items():
            if not self.do_sample and getattr(self, name) not in neutral:
                raise ValueError(
                    f"{name}={getattr(self, name)} does nothing without do_sample=True; set it or drop {name}"
                )
        return self

    @property
    def is_greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0

    @property
    def is_penalised(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0


class OptimiserSettings(Settings):
    """How weights are trained: AdamW, a warm-up, a schedule; in the words of transformers' ``Trainer`` by `arguments`.

    The papers name learning rates and epochs at most; the rest are customary values.
    """

    learning_rate: float = Field(1e-3, gt=0)
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)  # per process
    accumulation: int = Field(1, ge=1)  # batches per step; losses are means over the whole step
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)  # 0 = no clipping
    max_steps: int | None = Field(None, ge=1)  # None = as the epochs say
    logging_steps: int = Field(10, ge=1)

    def arguments(self) -> dict[str, Any]:
        """The same for transformers' ``TrainingArguments``."""
        return {
            "learning_rate": self.learning_rate,
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "warmup_steps": self.warmup_ratio,
            "lr_scheduler_type": self.scheduler,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "max_steps": self.max_steps or -1,
            "logging_steps": self.logging_steps,
        }


class ResumableSettings(OptimiserSettings):
    """Of training that is long enough to be interrupted."""

    save_steps: int = Field(500, ge=1)
    gradient_checkpointing: bool = False

    def arguments(self) -> dict[str, Any]:
        """The same for ``TrainingArguments``; gradient checkpointing is left to the caller, who knows the model."""
        # with AdamW's moments a checkpoint is three times the weights that are trained
        return {**super().arguments(), "save_steps": self.save_steps, "save_total_limit": 1}


def changes(before: Settings, now: Settings, free: Iterable[str] = ()) -> list[str]:
    """``sft.epochs was 1, is now 2`` for each option that differs, but for ``free`` ones and what is inside them."""
    found, wanted = (dict(_flat(settings.model_dump(mode="json"))) for settings in (before, now))
    free = tuple(free)
    return [
        f"{key} was {found.get(key)!r}, is now {wanted.get(key)!r}"
        for key in dict.fromkeys([*found, *wanted])
        if found.get(key) != wanted.get(key) and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
