"""One model alone."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from fusionroute.config import nearest
from fusionroute.evaluation.compare.lineup.entry import Contestant, Entry
from fusionroute.evaluation.compare.lineup.shared import Shared
from fusionroute.methods.single import Single
from fusionroute.models.loading import ModelReference, load_tokenizer
from fusionroute.models.prompt import PromptFormat


class SingleEntry(Entry):
    """One model alone: an expert by its name, or any other model."""

    method: Literal["single"] = "single"
    expert: str | None = None
    model: ModelReference | None = None

    @field_validator("model", mode="before")
    @classmethod
    def _a_model_may_be_a_name(cls, model: Any) -> Any:
        return {"model": model} if isinstance(model, str) else model

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.expert is None) == (self.model is None):
            raise ValueError("name an expert of this file, or a model by hub id or folder")
        return self

    def problem(self, experts: Mapping[str, ModelReference], base: ModelReference | None) -> str | None:
        is_known = self.expert is None or self.expert in experts
        return None if is_known else f"expert: {nearest(str(self.expert), experts)}"

    def models(self, shared: Shared) -> dict[str, ModelReference]:
        return {"model": self._reference(shared)}

    def check(self, shared: Shared) -> None:
        PromptFormat(load_tokenizer(self._reference(shared)), shared.prompt)

    def build(self, shared: Shared, seed: int) -> Contestant:
        reference = self._reference(shared)
        tokenizer = load_tokenizer(reference)
        method = Single(shared.load(reference), self.expert or "model")
        return Contestant(method, tokenizer, PromptFormat(tokenizer, shared.prompt))

    def _reference(self, shared: Shared) -> ModelReference:
        return self.model if self.model is not None else shared.experts[str(self.expert)]
