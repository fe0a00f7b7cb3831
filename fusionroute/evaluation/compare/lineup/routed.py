"""A mixture-of-experts model alone, whose routing is adapted to each prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fusionroute.config import nearest
from fusionroute.errors import DataError, SettingsError
from fusionroute.evaluation.compare.lineup.entry import Contestant, Entry
from fusionroute.evaluation.compare.lineup.shared import Shared
from fusionroute.models.loading import ModelReference, load_tokenizer
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.c3po.c3po import C3POSettings, Rerouting
from fusionroute.moe.c3po.method import C3PO
from fusionroute.moe.pathways.pathways import load_pathways
from fusionroute.moe.pathways.recording import read_record


class C3POEntry(C3POSettings, Entry):
    """C3PO over an expert. The layers, the embedder and the questions are those of the recording."""

    method: Literal["c3po"] = "c3po"
    expert: str
    references: str  # folder of pathways recorded of this expert

    def conditions(self) -> dict[str, Any]:
        """Of a recording what it is of, not where it lies."""
        return super().conditions() | {"references": {**self._record(), "model": None}}

    def problem(self, experts: Mapping[str, ModelReference], base: ModelReference | None) -> str | None:
        return None if self.expert in experts else f"expert: {nearest(self.expert, experts)}"

    def models(self, shared: Shared) -> dict[str, ModelReference]:
        return {"model": shared.experts[self.expert]}

    def check(self, shared: Shared) -> None:
        PromptFormat(load_tokenizer(shared.experts[self.expert]), shared.prompt)
        if (recorded := self._record()["prompt"]) != shared.prompt:
            raise SettingsError(
                f"references {self.references} were recorded with prompt {recorded!r} but the comparison uses "
                f"{shared.prompt!r}; give both the same"
            )

    def build(self, shared: Shared, seed: int) -> Contestant:
        self.check(shared)
        reference = shared.experts[self.expert]
        tokenizer = load_tokenizer(reference)
        prompt = PromptFormat(tokenizer, shared.prompt)
        options = self.model_dump(include=set(C3POSettings.model_fields), exclude_unset=True)
        rerouting = Rerouting.of(
            shared.load(reference),
            load_pathways(Path(self.references).expanduser()),
            prompt,
            C3POSettings.parse(options),
            device=shared.device,
        )
        return Contestant(C3PO(rerouting, self.expert, tokenizer=tokenizer), tokenizer, prompt)

    def _record(self) -> dict[str, Any]:
        record = read_record(Path(self.references).expanduser())
        if record is None:
            raise DataError(f"references: {self.references} holds no recorded pathways; record them first")
        return record
