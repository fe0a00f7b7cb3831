"""How a team drafts, as a user says it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from fusionroute.config import Settings, nearest
from fusionroute.errors import CheckpointError, SettingsError, UnsupportedModelError, VocabularyError
from fusionroute.models.loading import ModelReference, check_place, load_config, load_tokenizer

ROUTER: Final = "router"
NGRAM: Final = "ngram"
MODEL: Final = "model"
A_MODEL = "a small model's folder or hub id, such as owner/name"
MOST, LONGEST = 16, 64


class SpeculationSettings(Settings):
    """Who drafts and how far.

    Attributes:
        drafter: ``"router"`` (the team's own, which reads every token anyway, so that only passes of the experts are
            saved), ``"ngram"`` (what followed the last few tokens where they stood before) or ``"model"``.
        model: with ``drafter="model"``: a small language model of the team's vocabulary.
        max_draft: γ, the most tokens drafted before the models are asked; fewer where many sequences over a large
            vocabulary would take too much memory.
        adaptive: draft as far as pays by what was accepted and what rounds took, and not at all where it does not; a
            router or a model also stops where it is unsure of its own token. False drafts γ tokens in every round.
    """

    drafter: Literal["router", "ngram", "model"] = ROUTER
    model: ModelReference | None = None
    max_draft: int = Field(MOST)
    adaptive: bool = True

    @field_validator("model", mode="before")
    @classmethod
    def _a_name_is_a_reference(cls, value: Any) -> Any:
        if value == "":
            raise ValueError(f"it is empty; give {A_MODEL}")
        return {"model": value} if isinstance(value, str) else value

    @field_validator("max_draft", mode="before")
    @classmethod
    def _is_a_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"the most tokens of a draft is a number, {MOST} unless told")
        return value

    @field_validator("max_draft")
    @classmethod
    def _draft_something(cls, value: int) -> int:
        if not 1 <= value <= LONGEST:
            raise ValueError(
                f"the most tokens of a draft is at least 1 and at most {LONGEST}, {MOST} unless told; to draft none, "
                "leave out speculation"
            )
        return value

    @model_validator(mode="after")
    def _a_model_where_it_drafts(self) -> Self:
        if self.drafter == MODEL and self.model is None:
            raise ValueError(f"drafter 'model' needs model: {A_MODEL}, of the same vocabulary")
        if self.drafter != MODEL and self.model is not None:
            raise ValueError(f"drafter {self.drafter!r} asks no model; set drafter to 'model' or drop model")
        return self

    @classmethod
    def of(cls, value: "str | Mapping[str, Any] | SpeculationSettings | None") -> "SpeculationSettings | None":
        """From what callers may say: settings, a mapping, a drafter's name, or where a small model stands.

        Raises:
            SettingsError: a bad option, or a name that is neither a drafter's nor could be a model's.
        """
        if value is None or isinstance(value, SpeculationSettings):
            return value
        if isinstance(value, Mapping):
            return cls.parse(value, source="speculation")
        if not isinstance(value, str):
            raise SettingsError(f"speculation is a drafter's name or a mapping of options; got {value!r}")
        return cls.named(value)

    @classmethod
    def named(cls, drafter: str, **options: Any) -> "SpeculationSettings":
        """Of a drafter's name, or of a small model's folder or hub id. Raises `SettingsError`."""
        if drafter in (ROUTER, NGRAM):
            options["drafter"] = drafter
        elif "/" in drafter or Path(drafter).expanduser().is_dir():
            options |= {"drafter": MODEL, "model": drafter}
        elif drafter in ("", MODEL):
            raise SettingsError(f"speculation: for a model that drafts give {A_MODEL}, instead of {drafter!r}")
        else:
            told = nearest(drafter, (ROUTER, NGRAM)).replace("option", "drafter", 1)
            raise SettingsError(f"speculation: {told}, or {A_MODEL}; there is no folder {drafter!r} here")
        return cls.parse(options, source="speculation")

    def require_model(self) -> None:
        """Look whether the model that drafts could be loaded, before others are, which may take minutes.

        Raises:
            CheckpointError, SettingsError: as `load_model`; the error says that it is about the draft model.
        """
        if self.model is not None:
            with about_draft_model():
                check_place(self.model, dtype=None, device=None)
                load_config(self.model)
                load_tokenizer(self.model)


@contextmanager
def about_draft_model() -> Iterator[None]:
    """Let errors of loading or checking begin with what they are about."""
    try:
        yield
    except (CheckpointError, SettingsError, UnsupportedModelError, VocabularyError) as error:
        raise type(error)(f"draft model: {error}") from error
