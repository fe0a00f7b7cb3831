"""How a team drafts, as a user says it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from fusionroute.config import Settings, nearest
from fusionroute.errors import SettingsError
from fusionroute.models.loading import ModelReference

ROUTER: Final = "router"
NGRAM: Final = "ngram"
MODEL: Final = "model"
MOST = 16


class SpeculationSettings(Settings):
    """Who drafts and how far.

    Attributes:
        drafter: ``"router"`` (the team's own, which reads every token anyway, so that only passes of the experts are
            saved), ``"ngram"`` (what followed the last few tokens where they stood before) or ``"model"``.
        model: with ``drafter="model"``: a small language model of the team's vocabulary.
        max_draft: γ, the most tokens drafted before the models are asked.
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
        return {"model": value} if isinstance(value, str) else value

    @field_validator("max_draft")
    @classmethod
    def _draft_something(cls, value: int) -> int:
        if value < 1:
            raise ValueError(
                f"the most tokens of a draft is at least 1, {MOST} unless told; to draft none, leave out speculation"
            )
        return value

    @model_validator(mode="after")
    def _a_model_where_it_drafts(self) -> Self:
        if self.drafter == MODEL and self.model is None:
            raise ValueError("drafter 'model' needs model, the folder or hub id of a small one of the same vocabulary")
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
        elif "/" in drafter or Path(drafter).is_dir():
            options |= {"drafter": MODEL, "model": drafter}
        else:
            raise SettingsError(f"speculation: {nearest(drafter, (ROUTER, NGRAM))}, a small model's folder or hub id")
        return cls.parse(options, source="speculation")
