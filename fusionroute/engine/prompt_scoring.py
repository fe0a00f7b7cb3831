"""How likely a prompt's own tokens are, by the distribution that its answer is written from; each is read once."""

import logging
from collections.abc import Sequence as ListLike

import torch
from torch import Tensor

from fusionroute.engine.choice import likeliest
from fusionroute.engine.method import Method, TeacherForced
from fusionroute.engine.runner import PREFILL_CHUNK, Runner
from fusionroute.engine.sequence import PromptLogprob, Sequence

logger = logging.getLogger(__name__)

MAX_LOGITS = 2**26  # numbers in one [sequences, tokens, vocabulary] tensor, of which a method holds a few at once
LARGEST_VOCABULARY = 2**18  # taken for that of models whose own is not known
STEP = PREFILL_CHUNK  # tokens of all prompts between two rounds, fewer where others write


class PromptScoring:
    """Prompts on their way through the models of one engine, a bounded part of them before each round.

    A method says what it would write after the *last* tokens of a sequence, so each sequence is cut to what has been
    read while it is scored, and is given back its prompt at once. The models keep what they read, all but a prompt's
    last token, after which the answer begins.
    """

    def __init__(self, method: Method):
        self.method = method
        self._found: dict[Sequence, list[PromptLogprob]] = {}  # of those begun; whose turn it is comes first

    def __contains__(self, sequence: Sequence) -> bool:
        """Whether its prompt is not scored to the end, so that its answer cannot begin."""
        return sequence in self._found

    def forget(self, sequence: Sequence) -> None:
        self._found.pop(sequence, None)

    def advance(self, sequences: ListLike[Sequence], most: int | None = None) -> None:
        """Go on with those that ask for log-probabilities of their prompts; fills `Sequence.prompt_logprobs`.

        Args:
            most: tokens of all their prompts together; None, where nobody waits for the next round, means many.

        A sequence on which a model fails has ended when this returns. So have those that were scored together where
        the method raises; nobody else has been touched.
        """
        for sequence in sequences:
            if _is_asking(sequence) and sequence not in self._found:
                self._found[sequence] = [(sequence.token_ids[0], None, ())]
                self._settle(sequence)
        left = STEP if most is None else min(STEP, most)
        while left > 0 and self._found:
            left -= self._pass(left)

    def _pass(self, most: int) -> int:
        """Equally many tokens of the one whose turn it is and of others that have so many; returns how many in all."""
        first = next(iter(self._found))
        most = max(1, min(most, MAX_LOGITS // _vocabulary(self.method)))
        count = min(most, self._remaining(first))
        together = [each for each in self._found if self._remaining(each) >= count][: most // count]
        self._read(together, count)
        for sequence in together:
            self._settle(sequence)
        if first in self._found:  # a long prompt: now the others' turn
            self._found[first] = self._found.pop(first)
        return count * len(together)

    def _remaining(self, sequence: Sequence) -> int:
        """Tokens that are still to be told how likely they are."""
        return sequence.prompt_length - len(self._found[sequence])

    def _settle(self, sequence: Sequence) -> None:
        """Let it write if all of its prompt is scored, and let go of it also if it has failed."""
        if sequence.is_finished:
            self.forget(sequence)
        elif not self._remaining(sequence):
            sequence.prompt_logprobs = self._found.pop(sequence)

    def _read(self, sequences: list[Sequence], count: int) -> None:
        assert isinstance(self.method, TeacherForced), "settings are checked before a sequence is queued"
        prompts = [sequence.token_ids for sequence in sequences]
        try:
            for sequence, prompt in zip(sequences, prompts, strict=True):
                sequence.token_ids = prompt[: len(self._found[sequence]) + count - 1]
            said = self.method.log_probabilities(sequences, count)
            for sequence, prompt, rows in zip(sequences, prompts, said, strict=True):
                begin = len(self._found[sequence])
                tokens, wanted = prompt[begin : begin + count], sequence.settings.prompt_logprobs or 0
                self._found[sequence] += _scored(rows, tokens, wanted)
        except Exception as error:
            logger.exception("prompts could not be scored; their answers are ended")
            for sequence in sequences:
                sequence.fail(f"the prompt could not be scored: {type(error).__name__}")
        finally:
            for sequence, prompt in zip(sequences, prompts, strict=True):
                sequence.token_ids = prompt


def _is_asking(sequence: Sequence) -> bool:
    wanted = sequence.settings.prompt_logprobs is not None and sequence.prompt_logprobs is None
    return wanted and not sequence.is_finished


def _vocabulary(method: Method) -> int:
    sizes = [runner.config.vocab_size for runner in method.runners if isinstance(runner, Runner)]
    return max(sizes, default=LARGEST_VOCABULARY)


def _scored(said: Tensor, tokens: list[int], wanted: int) -> list[PromptLogprob]:
    """Each of ``tokens`` by the row of ``[tokens, vocabulary]`` log-probabilities before it."""
    ids = torch.tensor(tokens, device=said.device)
    own = said.gather(-1, ids[:, None])[:, 0].tolist()
    return list(zip(tokens, own, likeliest(said, wanted), strict=True))
