"""One model whose weights are made of all the experts'."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import field_validator

from fusionroute.errors import SettingsError
from fusionroute.evaluation.compare.lineup.entry import Contestant, Entry
from fusionroute.evaluation.compare.lineup.shared import Shared
from fusionroute.methods.single import Single
from fusionroute.models.loading import ModelReference, default_device, load_tokenizer
from fusionroute.models.merging import merge_models
from fusionroute.models.prompt import PromptFormat
from fusionroute.models.vocabulary import check_tokenizers
from fusionroute.ops.merging import MergeSettings, formulas


class MergeEntry(Entry):
    """One model whose weights are made of all the experts', run alone."""

    method: Literal["task_arithmetic", "ties", "dare"]
    base: ModelReference | None = None  # None = the comparison's
    scale: float | None = None  # λ; None: the default of `MergeSettings`, here and below
    drop_rate: float | None = None
    density: float | None = None

    @field_validator("base", mode="before")
    @classmethod
    def _a_base_may_be_a_name(cls, base: Any) -> Any:
        return {"model": base} if isinstance(base, str) else base

    @property
    def is_seeded(self) -> bool:
        return self.method == "dare" or super().is_seeded

    def problem(self, experts: Mapping[str, ModelReference], base: ModelReference | None) -> str | None:
        if self.base is None and base is None:
            return f"{self.method} needs the base that the experts were tuned from; name it as base"
        try:
            self._settings(0)
        except SettingsError as error:
            return str(error)
        return None

    def models(self, shared: Shared) -> dict[str, ModelReference]:
        return {"base": self._base(shared), **super().models(shared)}

    def check(self, shared: Shared) -> None:
        formulas()
        tokenizer = shared.tokenizer()
        check_tokenizers(tokenizer, {"base": load_tokenizer(self._base(shared))})
        PromptFormat(tokenizer, shared.prompt)

    def build(self, shared: Shared, seed: int) -> Contestant:
        tokenizer = shared.tokenizer()
        merged = merge_models(self._base(shared), shared.experts, self._settings(seed), dtype=shared.dtype)
        device = torch.device(shared.device or default_device())
        if merged.dtype == torch.float16 and device.type == "cpu":
            merged = merged.float()  # as for every other model: half precision is slower and coarser there
        merged.to(device)  # type: ignore[arg-type]
        method = Single(merged, self.method)
        return Contestant(method, tokenizer, PromptFormat(tokenizer, shared.prompt))

    def _base(self, shared: Shared) -> ModelReference:
        base = self.base or shared.base
        assert base is not None, "checked by problem()"
        return base

    def _settings(self, seed: int) -> MergeSettings:
        given = {key: getattr(self, key) for key in ("scale", "drop_rate", "density") if getattr(self, key) is not None}
        seeded = {"seed": seed} if self.method == "dare" else {}
        return MergeSettings.parse({"method": self.method, **given, **seeded})
