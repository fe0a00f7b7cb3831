"""Who is compared: from a method's entry in a compare file to a method that can write.

A method's name becomes a class through `ENTRIES`; adding one is one entry here beside its own file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.config import Settings, nearest
from fusionroute.engine.method import Method
from fusionroute.engine.scorer import MeanLogLikelihood, RewardScorer, Scorer
from fusionroute.errors import SettingsError, VocabularyError
from fusionroute.methods.averaging import Averaging
from fusionroute.methods.collab import Collab
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.sequence_selection import SequenceSelection
from fusionroute.methods.single import Single
from fusionroute.models.fingerprint import model_fingerprint, text_fingerprint
from fusionroute.models.loading import Loaded, ModelReference, default_device, load_model, load_tokenizer
from fusionroute.models.merging import merge_models
from fusionroute.models.prompt import CHAT_TEMPLATE, PromptFormat
from fusionroute.models.reward import RewardModel, check_reward_model, load_reward_model
from fusionroute.models.team import ROUTER_FOLDER, TeamModels, expert_references, read_team_file, team_folder
from fusionroute.models.vocabulary import ROUTER, check_tokenizers
from fusionroute.ops.merging import MergeSettings

SEED = "{seed}"


class ScorerSettings(Settings):
    """Who says which of several texts is the best; neither named: the mean log-likelihood under all the experts."""

    model: str | None = None  # a language model with the experts' vocabulary: mean log-likelihood under it alone
    reward_model: str | None = None  # a sequence classifier with one output, of any vocabulary

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.model and self.reward_model:
            raise ValueError("name a model or a reward_model, not both")
        return self


@dataclass(frozen=True)
class Shared:
    """What all methods of a comparison have in common."""

    experts: Mapping[str, ModelReference]
    base: ModelReference | None
    scorer: ScorerSettings
    prompt: str | None
    device: str | None
    dtype: str | None

    def load(self, reference: ModelReference, loaded: Loaded | None = None) -> PreTrainedModel:
        return load_model(reference, device=self.device, dtype=self.dtype, loaded=loaded)

    def load_experts(self) -> dict[str, PreTrainedModel]:
        loaded: Loaded = {}
        return {name: self.load(reference, loaded) for name, reference in self.experts.items()}

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The experts' one tokenizer.

        Raises:
            VocabularyError: they differ.
            SettingsError: their chat templates differ, and prompts are put by them.
        """
        tokenizers = {name: load_tokenizer(reference) for name, reference in self.experts.items()}
        (first, tokenizer), *others = tokenizers.items()
        check_tokenizers(tokenizer, tokenizers)
        for name, other in others if self.prompt == CHAT_TEMPLATE else ():
            if other.chat_template != tokenizer.chat_template:
                raise SettingsError(
                    f"experts {first!r} and {name!r} have different chat templates, so one of them would read a format "
                    "that it does not know; name a format for all, such as prompt: alpaca, or give both one template"
                )
        return tokenizer


@dataclass(frozen=True)
class Contestant:
    """A method ready to write, and how prompts are put to it."""

    method: Method
    tokenizer: PreTrainedTokenizerBase
    prompt: PromptFormat


class Entry(Settings):
    """A method as it stands in a compare file."""

    method: str
    is_joint: ClassVar[bool] = False  # whether several models write one answer

    @property
    def is_seeded(self) -> bool:
        """Whether its answers may differ between seeds even if they are not sampled."""
        return SEED in str(self.model_dump())

    def at(self, seed: int) -> Self:
        """The entry for one seed: ``{seed}`` filled in."""
        return type(self).model_validate(_filled(self.model_dump(exclude_unset=True), seed))

    def problem(self, experts: Mapping[str, ModelReference], base: ModelReference | None) -> str | None:
        """What is wrong with it beside these experts; None if nothing is."""
        return None

    def models(self, shared: Shared) -> dict[str, ModelReference]:
        """Every model it needs, by its part, so that a result knows which ones it was measured on."""
        return {f"expert {name}": reference for name, reference in shared.experts.items()}

    def scored_by(self, shared: Shared) -> dict[str, Any] | None:
        """Whose judgement it follows, if anybody's."""
        return None

    def check(self, shared: Shared) -> None:
        """Whatever can be told without loading weights, so that it is told before hours are spent.

        Raises:
            CheckpointError, VocabularyError, SettingsError: as the parts do.
        """

    def build(self, shared: Shared, seed: int) -> Contestant:
        """Load what it needs. Raises as `check` does."""
        raise NotImplementedError


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


class _OverExperts(Entry):
    """A way of combining the experts as they are."""

    is_joint: ClassVar[bool] = True

    def problem(self, experts: Mapping[str, ModelReference], base: ModelReference | None) -> str | None:
        return None if len(experts) > 1 else f"{self.method} combines experts; name at least two"

    def check(self, shared: Shared) -> None:
        PromptFormat(shared.tokenizer(), shared.prompt)

    def build(self, shared: Shared, seed: int) -> Contestant:
        tokenizer = shared.tokenizer()
        method = self._combine(shared.load_experts(), tokenizer, shared)
        return Contestant(method, tokenizer, PromptFormat(tokenizer, shared.prompt))

    def _combine(
        self, experts: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, shared: Shared
    ) -> Method:
        raise NotImplementedError


class AveragingEntry(_OverExperts):
    method: Literal["averaging"] = "averaging"
    weights: dict[str, float] | None = None  # by expert; None = all the same
    space: Literal["probabilities", "log_probabilities"] = "probabilities"

    def problem(self, experts: Mapping[str, ModelReference], base: ModelReference | None) -> str | None:
        for name in self.weights or experts:
            if name not in experts:
                return f"weights: {nearest(name, experts)}"
        if self.weights is not None and (missing := [name for name in experts if name not in self.weights]):
            return f"weights: {missing[0]!r} has none; give every expert one, 0 where it is to be left out"
        return super().problem(experts, base)

    def _combine(
        self, experts: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, shared: Shared
    ) -> Method:
        weights = [self.weights[name] for name in experts] if self.weights is not None else None
        return Averaging(experts, weights=weights, space=self.space)


class _ByScorer(_OverExperts):
    scorer: ScorerSettings | None = None  # None = the comparison's

    def scored_by(self, shared: Shared) -> dict[str, Any] | None:
        return (self.scorer or shared.scorer).model_dump()

    def models(self, shared: Shared) -> dict[str, ModelReference]:
        scorer = self.scorer or shared.scorer
        named = scorer.model or scorer.reward_model
        return super().models(shared) | ({"scorer": ModelReference(model=named)} if named else {})

    def check(self, shared: Shared) -> None:
        super().check(shared)
        scorer = self.scorer or shared.scorer
        if scorer.reward_model is not None:
            check_reward_model(scorer.reward_model)
        if scorer.model is not None:
            _check_scorer(scorer.model, shared.tokenizer())

    def _scorer(
        self, experts: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, shared: Shared
    ) -> Scorer | None:
        scorer = self.scorer or shared.scorer
        if scorer.reward_model is not None:
            return RewardScorer(RewardModel(*load_reward_model(scorer.reward_model, device=shared.device)), tokenizer)
        if scorer.model is None:
            return None
        _check_scorer(scorer.model, tokenizer)
        model = shared.load(ModelReference(model=scorer.model))
        return MeanLogLikelihood.by_model(model, "scorer", experts=experts)


class SequenceSelectionEntry(_ByScorer):
    method: Literal["sequence_selection"] = "sequence_selection"

    def _combine(
        self, experts: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, shared: Shared
    ) -> Method:
        return SequenceSelection(experts, self._scorer(experts, tokenizer, shared))


class CollabEntry(_ByScorer):
    method: Literal["collab"] = "collab"
    candidates: int = Field(1, ge=1)
    rollout: int = Field(8, ge=0)

    def _combine(
        self, experts: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, shared: Shared
    ) -> Method:
        scorer = self._scorer(experts, tokenizer, shared)
        return Collab(experts, scorer, candidates=self.candidates, rollout=self.rollout)


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


class FusionRouteEntry(Entry):
    """A trained team."""

    is_joint: ClassVar[bool] = True

    method: Literal["fusion_route"] = "fusion_route"
    team: str
    complement: bool = True

    def models(self, shared: Shared) -> dict[str, ModelReference]:
        folder = team_folder(self.team)
        experts = {f"expert {name}": reference for name, reference in expert_references(folder).items()}
        return {ROUTER: ModelReference(model=str(folder / ROUTER_FOLDER)), **experts}

    def check(self, shared: Shared) -> None:
        """A fair comparison gives every method the same experts and the same prompts."""
        team = read_team_file(team_folder(self.team))
        names = [expert.name for expert in team.experts]
        if set(names) != set(shared.experts):
            raise SettingsError(
                f"team {self.team} has the experts {', '.join(names)} but the comparison {', '.join(shared.experts)}; "
                "a fair comparison gives every method the same ones"
            )
        for name, reference in expert_references(team_folder(self.team)).items():
            content, wanted = (
                model_fingerprint(each, shared.dtype)["content"] for each in (reference, shared.experts[name])
            )
            if content != wanted:
                raise SettingsError(
                    f"expert {name!r} of team {self.team} is another model than the comparison's ({reference.model}, "
                    f"not {shared.experts[name].model}); a fair comparison gives every method the same ones"
                )
        if team.prompt != shared.prompt:
            raise SettingsError(
                f"team {self.team} was trained with prompt {team.prompt!r} but the comparison uses {shared.prompt!r}; "
                "set prompt in the compare file to what the models were trained with"
            )

    def build(self, shared: Shared, seed: int) -> Contestant:
        self.check(shared)
        team = TeamModels.from_pretrained(self.team, dtype=shared.dtype, device=shared.device)
        return Contestant(FusionRoute(team, complement=self.complement), team.tokenizer, team.prompt_format)


ENTRIES: dict[str, type[Entry]] = {
    "single": SingleEntry,
    "sequence_selection": SequenceSelectionEntry,
    "collab": CollabEntry,
    "averaging": AveragingEntry,
    "task_arithmetic": MergeEntry,
    "ties": MergeEntry,
    "dare": MergeEntry,
    "fusion_route": FusionRouteEntry,
}


def _check_scorer(location: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A language model scores token ids, so they must mean the same to it."""
    try:
        check_tokenizers(tokenizer, {"scorer": load_tokenizer(location)})
    except VocabularyError as error:
        raise VocabularyError(f"{error}; a reward_model may have any tokenizer, because it reads text") from None


def fingerprints(entry: Entry, shared: Shared) -> dict[str, Any]:
    """Which models an entry stands for, by their content. Raises `CheckpointError` for one that is not there."""
    return {
        # a folder may have been renamed, so its name says nothing
        name: model_fingerprint(reference, shared.dtype) | {"model": None, "text": text_fingerprint(reference)}
        for name, reference in entry.models(shared).items()
    }


def _filled(value: Any, seed: int) -> Any:
    if isinstance(value, str):
        return value.replace(SEED, str(seed))
    if isinstance(value, Mapping):
        return {key: _filled(each, seed) for key, each in value.items()}
    return value
