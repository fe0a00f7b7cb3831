"""One model that follows what another writes: it reads the answer's text in its own tokens, after its own prompt."""

from bisect import bisect_left
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from itertools import takewhile
from operator import eq

import torch
from torch import Tensor

from fusionroute.engine.method import MakeRunner
from fusionroute.engine.sequence import Sequence
from fusionroute.errors import PromptError
from fusionroute.models.member import Member
from fusionroute.models.opening import is_opened

STRETCH = 2  # tokens that a model may need for one of the drafter's, as far as memory is promised


class View:
    """The tokens that one model has of a sequence: the handle of its cache, and what it reads."""

    def __init__(self, sequence: Sequence, token_ids: list[int], max_length: int):
        self.sequence = sequence
        self.token_ids = token_ids
        self.prompt_length = len(token_ids)
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.token_ids)

    def fail(self, message: str) -> None:
        self.sequence.fail(message)

    def common_with(self, answer_ids: list[int]) -> int:
        """How many tokens, the prompt's included, stay if the answer's are now these."""
        mine = self.token_ids[self.prompt_length :]
        if mine == answer_ids[: len(mine)]:
            return len(self.token_ids)
        return self.prompt_length + sum(takewhile(bool, map(eq, mine, answer_ids)))


@dataclass(frozen=True)
class Heard:
    """What one model says of an answer from some place on. Row r is what it says before a token of its own.

    Attributes:
        rows: by byte offset in the answer: where one of the model's tokens starts outside any character, or the text
            ends outside one.
        logits: ``[rows, vocabulary]``.
        probabilities: of the model's token at each row, by a float32 softmax over the whole vocabulary; 0 where the
            text ends.
        is_first: whether that token is the model's first choice.
        ending: the probability of the answer's end at each row, all ways to end it together.
        ending_is_first: whether an end is the model's first choice.
    """

    rows: dict[int, int]
    logits: Tensor
    probabilities: list[float]
    is_first: list[bool]
    ending: list[float]
    ending_is_first: list[bool]


class TextReader:
    """Retokenises the answer at every read; what its ids have in common with those of the read before stays cached.

    Args:
        member: whose model, tokens and prompt format.
    """

    def __init__(self, member: Member, make_runner: MakeRunner):
        self.member = member
        self.pieces = member.pieces
        self.runner = make_runner(member.model, member.name)
        self._views: dict[Sequence, View] = {}

    def prompt_ids(self, sequence: Sequence) -> list[int]:
        """The prompt as this model reads it.

        Raises:
            PromptError: it is only known as another model's tokens, or leaves no room for a token of the answer.
        """
        name, limit = self.member.name, self.member.context_length
        if sequence.prompt is None:
            raise PromptError(
                f"a prompt of token ids speaks to one model only, and {name!r} has other tokens; give text or messages"
            )
        ids = self.member.prompt.encode(sequence.prompt)
        if len(ids) >= limit:
            raise PromptError(
                f"the prompt has {len(ids)} tokens for model {name!r} but its context is {limit}, and one must be left "
                "to read; shorten the prompt"
            )
        return ids

    @torch.inference_mode()
    def read(self, sequences: ListLike[Sequence], texts: ListLike[bytes], since: ListLike[int]) -> list[Heard | None]:
        """Read each answer as far as it goes; return what the model says from the given offset on.

        Args:
            texts: of the answers so far.
            since: byte offsets, at most the texts' lengths: rows begin with the first own token that starts there or
                later.

        Returns:
            None for a sequence that the model has failed on, and for one whose text does not fit its context.
        """
        leads = [lead_of(self.member, sequence) for sequence in sequences]
        tokens = [self.pieces.encode(lead + text) for lead, text in zip(leads, texts, strict=True)]
        starts = [
            [start - len(lead) for start in self.pieces.starts(ids)] for lead, ids in zip(leads, tokens, strict=True)
        ]
        first = [bisect_left(each, offset) for each, offset in zip(starts, since, strict=True)]
        fitting = [at for at, sequence in enumerate(sequences) if self._update(sequence, tokens[at])]
        heard: list[Heard | None] = [None] * len(sequences)
        if fitting:
            lasts = [len(tokens[at]) - first[at] + 1 for at in fitting]
            logits = self.runner.read([self._views[sequences[at]] for at in fitting], lasts).logits.float()
            said = self._said(logits, [tokens[at][first[at] :] for at in fitting])
            for row, at in enumerate(fitting):
                if not sequences[at].is_finished:
                    places = _rows(texts[at], starts[at][first[at] :])
                    heard[at] = Heard(places, logits[row, -lasts[row] :], *(each[row][-lasts[row] :] for each in said))
        return heard

    def view(self, sequence: Sequence) -> View:
        """What it reads of the sequence; the prompt alone, if it has not read yet. Raises as `prompt_ids` does."""
        if sequence not in self._views:
            prompt_ids = self.prompt_ids(sequence)
            promised = len(prompt_ids) + STRETCH * sequence.settings.max_new_tokens
            self._views[sequence] = View(sequence, prompt_ids, min(promised, self.member.context_length))
        return self._views[sequence]

    def rollback(self, sequence: Sequence, length: int) -> None:
        """There is nothing to do: the next read finds what has changed."""

    def release(self, sequence: Sequence) -> None:
        if sequence in self._views:
            self.runner.release(self._views.pop(sequence))

    def _update(self, sequence: Sequence, answer_ids: list[int]) -> bool:
        """Bring the view up to these tokens; False if they do not fit the context."""
        view = self.view(sequence)
        if view.prompt_length + len(answer_ids) > self.member.context_length:
            return False
        self.runner.rollback(view, view.common_with(answer_ids))
        view.token_ids[view.prompt_length :] = answer_ids
        return True

    def _said(self, logits: Tensor, tokens: list[list[int]]) -> tuple[list, list, list, list]:
        """The lists of `Heard`, each ``[sequences][rows]``, from ``[sequences, rows, vocabulary]``."""
        width = logits.shape[1]
        own = torch.tensor([[0] * (width - 1 - len(ids)) + ids + [0] for ids in tokens], device=logits.device)
        normaliser, best = logits.logsumexp(-1), logits.argmax(-1)
        probabilities = (logits.gather(-1, own[..., None]).squeeze(-1) - normaliser).exp()
        probabilities[:, -1] = 0  # the text ends before that token
        end_ids = torch.tensor(sorted(self.pieces.end_ids), device=logits.device)
        ending = (logits[..., end_ids].logsumexp(-1) - normaliser).exp()
        ending_is_first = torch.isin(best, end_ids)
        is_first = best == own
        is_first[:, -1] = False
        return probabilities.tolist(), is_first.tolist(), ending.tolist(), ending_is_first.tolist()


def lead_of(member: Member, sequence: Sequence) -> bytes:
    """What stands between a member's prompt and the answer; nothing where the answer has begun in the prompt."""
    return b"" if is_opened(sequence.prompt) else member.prompt.lead.encode()


def _rows(text: bytes, starts: list[int]) -> dict[int, int]:
    """From the offsets of places where a token may begin to rows; the inside of a character is no such place."""
    rows = {start: row for row, start in enumerate(starts) if not is_inside_character(text, start)}
    if not is_inside_character(text, len(text)):
        rows[len(text)] = len(starts)
    return rows


def is_inside_character(text: bytes, offset: int) -> bool:
    """Whether a UTF-8 character begins before ``offset`` and is not complete there.

    At the end of the text that is what still may become a character.
    """
    for back in range(1, min(4, offset + 1)):
        byte = text[offset - back]
        if byte & 0xC0 != 0x80:  # no continuation: here is where the last character began
            size = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return size > back and _could_go_on(text[offset - back :][:size], back)
    return False


def _could_go_on(character: bytes, complete: int) -> bool:
    """Whether these bytes are, or at the end of the text may become, one character; stray bytes never do."""
    try:
        character.decode()
        return True
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and len(character) >= complete
