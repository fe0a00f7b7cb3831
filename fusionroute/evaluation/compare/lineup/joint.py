"""Ways of combining the experts as they are: averaging, sequence selection, Collab."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.config import nearest
from fusionroute.engine.method import Method
from fusionroute.engine.scorer import MeanLogLikelihood, RewardScorer, Scorer
from fusionroute.errors import VocabularyError
from fusionroute.evaluation.compare.lineup.entry import Contestant, Entry
from fusionroute.evaluation.compare.lineup.shared import ScorerSettings, Shared
from fusionroute.methods.averaging import Averaging
from fusionroute.methods.collab import Collab
from fusionroute.methods.sequence_selection import SequenceSelection
from fusionroute.models.loading import ModelReference, load_tokenizer
from fusionroute.models.prompt import PromptFormat
from fusionroute.models.reward import RewardModel, check_reward_model, load_reward_model
from fusionroute.models.vocabulary import check_tokenizers


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


def _check_scorer(location: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A language model scores token ids, so they must mean the same to it."""
    try:
        check_tokenizers(tokenizer, {"scorer": load_tokenizer(location)})
    except VocabularyError as error:
        raise VocabularyError(f"{error}; a reward_model may have any tokenizer, because it reads text") from None
