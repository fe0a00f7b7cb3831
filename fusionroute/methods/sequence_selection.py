"""Sequence selection (a baseline of arXiv 2601.05106): each expert answers in full, a scorer keeps the best answer."""

from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from typing import Any

from fusionroute.engine.method import GreedyOnly, MakeRunner
from fusionroute.engine.prefill import Asked
from fusionroute.engine.rollout import extend, pass_on_failures, release, shadow_of, unfinished
from fusionroute.engine.runner import AnyRunner, Runner
from fusionroute.engine.scorer import UNSCORED, MeanLogLikelihood, Scorer
from fusionroute.engine.sequence import Sequence


class SequenceSelection(GreedyOnly):
    """One step writes a whole answer: the one that scores highest, of equals the first expert's.

    The trace names the winner at every token. A sequence fails if a model fails on it.

    Args:
        experts: name to causal LM, of one vocabulary.
        scorer: None = the experts themselves by `MeanLogLikelihood`.

    Raises:
        SettingsError, VocabularyError: as `OfExperts`; and for settings that sample, see `GreedyOnly`.
    """

    def __init__(self, experts: Mapping[str, Any], scorer: Scorer | None = None, *, make_runner: MakeRunner = Runner):
        super().__init__(experts, make_runner)
        self.scorer: Scorer = scorer or MeanLogLikelihood(self.experts)
        self.runners = tuple(dict.fromkeys([*self.experts, *self.scorer.runners]))
        self.context_length = min(self.context_length, self.scorer.context_length)

    def asked(self, sequence: Sequence) -> Asked:
        return ()  # what is read are shadows, and their prompts at once

    def step(self, sequences: ListLike[Sequence]) -> None:
        best: dict[Sequence, tuple[float, Sequence]] = {}
        for expert in self.experts:
            for sequence, answer, score in self._answers(expert, unfinished(sequences)):
                if sequence not in best or score > best[sequence][0]:
                    best[sequence] = (score, answer)
        for sequence, (score, answer) in best.items():
            if score == UNSCORED:
                sequence.fail("the scorer could judge no expert's answer; its context may be too short for them")
            for record in answer.trace[sequence.position :]:
                sequence.append(record)

    def _answers(self, expert: AnyRunner, sequences: list[Sequence]) -> list[tuple[Sequence, Sequence, float]]:
        """(sequence, its answer by one expert, score); those that a model fails on are left out.

        An answer has one row of cache in each model, and only until it is scored.
        """
        answers = [shadow_of(sequence) for sequence in sequences]
        try:
            extend(expert, answers)
            pass_on_failures(answers, sequences)
            whole = [
                (sequence, answer)
                for sequence, answer in zip(sequences, answers, strict=True)
                if not sequence.is_finished
            ]
            scores = self.scorer.score([answer for _, answer in whole], [len(sequence) for sequence, _ in whole])
            pass_on_failures(answers, sequences)
        finally:
            release(answers, self.runners)
        return [(*pair, score) for pair, score in zip(whole, scores, strict=True)]
