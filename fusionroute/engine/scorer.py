"""Who says which of several continuations is best: language models by likelihood, or a reward model that reads text."""

import math
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as ListLike
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fusionroute.engine.method import MakeRunner, check_vocabulary
from fusionroute.engine.runner import AnyRunner, Runner, split_by_width
from fusionroute.engine.sequence import Sequence
from fusionroute.models.prompt import Prompt
from fusionroute.models.reward import RewardModel
from fusionroute.models.team import context_length

UNSCORED = float("-inf")
UNLIMITED = 2**62
PASS_COST = 64  # tokens read again that cost about as much as one more pass, of judges of any size
POSITIONS_TOGETHER = 2048  # logits of a whole vocabulary each; bounds what one pass of scoring takes


class Scorer(Protocol):
    """Judges candidates: sequences of which the last tokens are in question.

    Attributes:
        runners: the models whose caches it uses; whoever owns the candidates cuts them back and frees them there.
        context_length: positions that the smallest of its models can hold.
        reward_model: a model that reads whole texts instead, without a cache, if that is how it judges.
    """

    runners: ListLike[AnyRunner]
    context_length: int
    reward_model: RewardModel | None

    def score(self, candidates: ListLike[Sequence], starts: ListLike[int]) -> list[float]:
        """One score per candidate, higher is better.

        Args:
            starts: where the tokens in question begin, the prompt included; at least one token stands from there on.

        Where a model returns no finite logits, the candidate's ``error`` says so; `UNSCORED` means that it cannot be
        judged.
        """
        ...


class MeanLogLikelihood:
    """Mean over the models of the mean log-probability of ``tokens[start:]`` given what precedes each of them.

    Args:
        runners: of the experts themselves, whose caches are then shared, or of one other model (see `by_model`).
    """

    def __init__(self, runners: ListLike[AnyRunner], *, context_length: int = UNLIMITED):
        self.runners: ListLike[AnyRunner] = tuple(runners)
        self.context_length = context_length
        self.reward_model: RewardModel | None = None

    @classmethod
    def by_model(cls, model: Any, name: str, *, experts: Mapping[str, Any], make_runner: MakeRunner = Runner) -> Self:
        """One language model judges what ``experts`` write; `VocabularyError` if it does not share their vocabulary."""
        check_vocabulary({**experts, name: model})
        return cls([make_runner(model, name)], context_length=context_length(model))

    def score(self, candidates: ListLike[Sequence], starts: ListLike[int]) -> list[float]:
        counts = [len(candidate) - start for candidate, start in zip(candidates, starts, strict=True)]
        assert all(count > 0 for count in counts), "a candidate needs at least one token to be judged by"
        scores = [0.0] * len(candidates)
        for rows in _read_together(counts, [len(candidate) for candidate in candidates]):
            group, widths = [candidates[row] for row in rows], [counts[row] for row in rows]
            for runner in self.runners:
                for row, mean in zip(rows, _means(runner, group, widths).tolist(), strict=True):
                    scores[row] += mean / len(self.runners)
                    if math.isnan(mean):  # a candidate that is finished does not fail when it is read
                        candidates[row].error = f"model {runner.name!r} returned NaN logits for what it was to judge"
        return scores


class RewardScorer:
    """A reward model reads prompt and answer as text; its tokenizer may be another one.

    It reads the prompt as it was before it was rendered for the experts (`Sequence.prompt`), in its own format; where
    that is not known, as the experts read it, without special tokens.

    What does not fit its context is `UNSCORED`. Raises `ModelOutputError` where the model's score is no number.

    Args:
        tokenizer: of the experts, to turn their tokens into text.
    """

    def __init__(self, reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase):
        self.reward_model: RewardModel | None = reward_model
        self.tokenizer = tokenizer
        self.runners: ListLike[AnyRunner] = ()
        self.context_length = UNLIMITED

    def score(self, candidates: ListLike[Sequence], starts: ListLike[int]) -> list[float]:
        assert self.reward_model is not None
        prompts = [self._prompt(candidate) for candidate in candidates]
        scores = self.reward_model(prompts, [self._answer(candidate) for candidate in candidates])
        return [UNSCORED if score is None else score for score in scores]

    def _prompt(self, candidate: Sequence) -> Prompt:
        """The prompt before it was rendered for the experts, where that is known."""
        if candidate.prompt is not None:
            return candidate.prompt
        return self._text(candidate.token_ids[: candidate.prompt_length])

    def _answer(self, candidate: Sequence) -> str:
        # with a stop string the sequence keeps its text, which ends where the answer does
        return candidate.text if candidate.settings.stop else self._text(candidate.output_ids)

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _means(runner: AnyRunner, candidates: list[Sequence], counts: list[int]) -> Tensor:
    """Mean log-probability of the last ``counts[i]`` tokens of each candidate, float64 ``[candidates]``."""
    last = max(counts)
    logits = runner.read(candidates, last + 1).logits[:, :-1].float()
    tokens = torch.tensor([candidate.token_ids[-last:] for candidate in candidates], device=logits.device)
    chosen = logits.gather(-1, tokens[..., None]).squeeze(-1) - logits.logsumexp(-1)
    # those of a shorter candidate stand at the right end
    asked = torch.arange(last, 0, -1, device=logits.device) <= torch.tensor(counts, device=logits.device)[:, None]
    return chosen.double().where(asked, 0.0).sum(-1) / asked.sum(-1)


def _read_together(counts: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Rows that one pass reads: a shorter one reads again as many tokens as the longest is asked for.

    So they are cut apart wherever that costs more than a pass, or where a row has not so many tokens.
    """
    for group in split_by_width(counts, PASS_COST) if counts else ():
        last = counts[group[-1]]
        fitting = [row for row in group if lengths[row] > last]
        size = max(1, POSITIONS_TOGETHER // (last + 1))
        yield from (fitting[at : at + size] for at in range(0, len(fitting), size))
        yield from ([row] for row in group if lengths[row] <= last)
