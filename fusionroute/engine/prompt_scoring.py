"""How likely a prompt's own tokens are, by the distribution that its answer is written from; each is read once."""

from collections.abc import Sequence as ListLike

import torch
from torch import Tensor

from fusionroute.engine.choice import likeliest
from fusionroute.engine.method import Method, TeacherForced
from fusionroute.engine.runner import PREFILL_CHUNK, Runner
from fusionroute.engine.sequence import PromptLogprob, Sequence

MAX_LOGITS = 2**26  # numbers in one [sequences, tokens, vocabulary] tensor, of which a method holds a few at once
LARGEST_VOCABULARY = 2**18  # taken for that of models whose own is not known


def score_prompts(method: Method, sequences: ListLike[Sequence]) -> None:
    """Fill `Sequence.prompt_logprobs` of those that ask for them and have none yet.

    The models keep what they read, all but a prompt's last token, after which the answer begins. A sequence on which a
    model fails has ended when this returns.
    """
    asking = [sequence for sequence in sequences if _is_asking(sequence)]
    if asking:
        assert isinstance(method, TeacherForced), "settings are checked before a sequence is queued"
        _Scoring(method, asking).run(_vocabulary(method))


def _is_asking(sequence: Sequence) -> bool:
    wanted = sequence.settings.prompt_logprobs is not None and sequence.prompt_logprobs is None
    return wanted and not sequence.is_finished


def _vocabulary(method: Method) -> int:
    sizes = [runner.config.vocab_size for runner in method.runners if isinstance(runner, Runner)]
    return max(sizes, default=LARGEST_VOCABULARY)


class _Scoring:
    """Prompts on their way through the models, all at equally many tokens a pass.

    A method says what it would write after the *last* tokens of a sequence, so each sequence is cut to what has been
    read while it is scored, and is given back its prompt at the end.
    """

    def __init__(self, method: TeacherForced, sequences: ListLike[Sequence]):
        self.method = method
        self.prompts = {sequence: sequence.token_ids for sequence in sequences}
        self.found = {sequence: [_first(sequence)] for sequence in sequences}

    def run(self, vocabulary: int) -> None:
        try:
            while unread := [sequence for sequence in self.prompts if self._remaining(sequence)]:
                room = min(PREFILL_CHUNK, max(1, MAX_LOGITS // (len(unread) * vocabulary)))
                self._read(unread, min(room, *map(self._remaining, unread)))
        finally:
            for sequence, prompt in self.prompts.items():
                sequence.token_ids = prompt
        for sequence, found in self.found.items():
            if not sequence.is_finished:
                sequence.prompt_logprobs = found

    def _remaining(self, sequence: Sequence) -> int:
        """Tokens that are still to be told how likely they are; none of a sequence that has failed."""
        return 0 if sequence.is_finished else len(self.prompts[sequence]) - len(self.found[sequence])

    def _read(self, sequences: list[Sequence], count: int) -> None:
        for sequence in sequences:
            sequence.token_ids = self.prompts[sequence][: len(self.found[sequence]) + count - 1]
        said = self.method.log_probabilities(sequences, count)
        for row, sequence in enumerate(sequences):
            begin = len(self.found[sequence])
            tokens = self.prompts[sequence][begin : begin + count]
            self.found[sequence] += _scored(said[row], tokens, sequence.settings.prompt_logprobs or 0)


def _first(sequence: Sequence) -> PromptLogprob:
    return sequence.token_ids[0], None, ()


def _scored(said: Tensor, tokens: list[int], wanted: int) -> list[PromptLogprob]:
    """Each of ``tokens`` by the row of ``[tokens, vocabulary]`` log-probabilities before it."""
    ids = torch.tensor(tokens, device=said.device)
    own = said.gather(-1, ids[:, None])[:, 0].tolist()
    return list(zip(tokens, own, likeliest(said, wanted), strict=True))
