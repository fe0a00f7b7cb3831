"""How likely given continuations are: teacher-forced, batched, and what requests share is read once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from fusionroute.config import GenerationSettings
from fusionroute.engine.method import Method, TeacherForced
from fusionroute.engine.sequence import Sequence as Written
from fusionroute.errors import ModelOutputError, PromptError, RequestTooLargeError, SettingsError

MAX_LOGITS = 2**26  # numbers in one [rows, last, vocabulary] tensor, of which a method holds a few at once
MAX_SHARING = 16  # passages on one row: they are read one after the other, so a row must not hold them all

Request = tuple[list[int], list[int]]  # token ids of a context and of its continuation
Score = tuple[float, bool]  # log-probability of the continuation; is each of its tokens the likeliest?


@dataclass
class Passage:
    """Tokens to read, and the requests that they answer: continuations that differ in their last token alone."""

    tokens: list[int]
    wanted: list[tuple[int, list[int]]] = field(default_factory=list)  # position of the request, its continuation

    @property
    def last(self) -> int:
        """Distributions needed at the end of the passage."""
        return max(len(continuation) for _, continuation in self.wanted)

    @property
    def prompt_length(self) -> int:
        """Tokens of the context; the continuations that share a passage are of one length."""
        return len(self.tokens) - self.last + 1


Row = list[Passage]


@dataclass(frozen=True)
class Limits:
    """What a batch may take.

    Attributes:
        context: tokens that may be read; longer requests are cut on the left.
        rows: passages read at once.
        cached: rows times their longest length, in every model.
        logits: numbers in one tensor of distributions, of which a token has ``vocabulary``.
    """

    context: int
    rows: int
    cached: int
    vocabulary: int
    logits: int = MAX_LOGITS


class Likelihoods:
    """Scores continuations with one method.

    Requests are cut as lm-eval's ``hf`` model cuts them: to the last ``context + 1`` tokens, of which the very last is
    only predicted. Requests with one context share a row: what they have in common is read once, then rolled back to.

    Raises:
        SettingsError: a method that chooses among answers or candidates, so it has no distribution of the next token.
    """

    def __init__(self, method: Method, limits: Limits):
        if not isinstance(method, TeacherForced):
            raise SettingsError(
                f"{type(method).__name__} has no distribution of the next token, so it cannot say how likely a text "
                "is; choose tasks that let it write (output_type generate_until), such as gsm8k"
            )
        self.method = method
        self.log_probabilities = method.log_probabilities
        self.limits = limits

    @torch.inference_mode()
    def score(self, requests: Sequence[Request], on_score: Callable[[int, Score], None]) -> list[Score]:
        """Scores in the order of ``requests``; ``on_score`` is told of each as it is known.

        Raises:
            PromptError: a continuation without tokens, or longer than the context.
            RequestTooLargeError: one that does not fit the cache even alone.
            ModelOutputError: a model returned logits that are no distribution, naming it.
        """
        scores: dict[int, Score] = {}
        for batch in self._batches(rows_of(requests, self.limits.context)):
            for at, score in self._read(batch):
                scores[at] = score
                on_score(at, score)
        return [scores[at] for at in range(len(requests))]

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows that are in the caches together, longest first, so that neighbours are alike."""
        batch: list[Row] = []
        room = 0
        for row in sorted(rows, key=_length, reverse=True):
            if len(batch) == room:
                yield from [batch] if batch else []
                batch, room = [], min(self.limits.rows, self.limits.cached // (_length(row) + 1))
            if room == 0:
                raise RequestTooLargeError(
                    f"a text of {_length(row)} tokens needs as many cached tokens but the limit is "
                    f"{self.limits.cached}; raise cache_limit"
                )
            batch.append(row)
        yield from [batch] if batch else []

    def _read(self, rows: list[Row]) -> Iterator[tuple[int, Score]]:
        # nothing is read yet, so a sequence only promises how long it may become
        sequences = [_sequence(row, self.limits.context) for row in rows]
        try:
            for turn in range(max(len(row) for row in rows)):
                turns = [(seq, row[turn]) for seq, row in zip(sequences, rows, strict=True) if turn < len(row)]
                for part in self._parts(turns):
                    yield from self._ask(part)
        finally:
            for sequence in sequences:
                self.method.release(sequence)

    def _parts(self, turns: list[tuple[Written, Passage]]) -> Iterator[list[tuple[Written, Passage]]]:
        """Passages that are asked together for as many distributions: none is shorter than that."""
        part: list[tuple[Written, Passage]] = []
        for turn in sorted(turns, key=lambda turn: turn[1].last, reverse=True):
            size = (len(part) + 1) * max(part[0][1].last if part else 0, turn[1].last) * self.limits.vocabulary
            if part and (size > self.limits.logits or len(turn[1].tokens) < part[0][1].last):
                yield part
                part = []
            part.append(turn)
        yield part

    def _ask(self, part: list[tuple[Written, Passage]]) -> Iterator[tuple[int, Score]]:
        sequences, passages = [sequence for sequence, _ in part], [passage for _, passage in part]
        last = max(passage.last for passage in passages)
        for sequence, passage in part:
            self.method.rollback(sequence, common_length(sequence.token_ids, passage.tokens))
            sequence.prompt_length = passage.prompt_length
        collected = [_Collected(row, passage, last) for row, passage in enumerate(passages)]
        step = max(1, self.limits.logits // (len(part) * self.limits.vocabulary))
        for start in range(0, last, step):  # more than once only where one passage alone wants too many
            end = min(start + step, last)
            for sequence, passage in part:
                sequence.token_ids = passage.tokens[: len(passage.tokens) - last + end]
            distributions = self.log_probabilities(sequences, end - start)
            _refuse_failed(sequences)
            for each in collected:
                each.take(distributions, start, end)
        for each in collected:
            yield from each.scores()


class _Collected:
    """What one passage's requests have got so far."""

    def __init__(self, row: int, passage: Passage, last: int):
        self.row = row
        self.wanted = passage.wanted
        self.last = last
        self.values: list[list[Tensor]] = [[] for _ in passage.wanted]
        self.likeliest = [True] * len(passage.wanted)

    def take(self, distributions: Tensor, start: int, end: int) -> None:
        """Read off ``[rows, end - start, vocabulary]``, those of positions ``start`` to ``end`` of ``last``."""
        for at, (_, continuation) in enumerate(self.wanted):
            begins = self.last - len(continuation)
            tokens = continuation[max(0, start - begins) : max(0, end - begins)]
            if tokens:
                ids = torch.tensor(tokens, device=distributions.device)
                rows = distributions[self.row, -len(tokens) :]
                self.values[at].append(rows.gather(-1, ids[:, None])[:, 0])
                self.likeliest[at] = self.likeliest[at] and bool((rows.argmax(-1) == ids).all())

    def scores(self) -> Iterator[tuple[int, Score]]:
        for (at, _), values, likeliest in zip(self.wanted, self.values, self.likeliest, strict=True):
            yield at, (float(torch.cat(values).sum()), likeliest)


def rows_of(requests: Iterable[Request], context: int) -> list[Row]:
    """Requests as passages, those of one context on one row. Raises `PromptError`."""
    rows: dict[tuple[object, ...], dict[tuple[int, ...], Passage]] = {}
    for at, (before, continuation) in enumerate(requests):
        _check(before, continuation, context)
        tokens = [*before, *continuation][-(context + 1) : -1]
        # a short context is not worth it: its requests would wait for each other to save little
        key = tuple(before) if len(before) > len(continuation) else (None, at)
        # of one length, also where contexts were cut into the same tokens
        passage = rows.setdefault(key, {}).setdefault((len(continuation), *tokens), Passage(tokens))
        passage.wanted.append((at, continuation))
    return [chunk for row in rows.values() for chunk in _chunks(list(row.values()))]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


def _check(before: list[int], continuation: list[int], context: int) -> None:
    if not before or not continuation:
        raise PromptError(
            f"a context of {len(before)} tokens and a continuation of {len(continuation)} cannot be scored; "
            "each needs at least one (text may melt into the token before it)"
        )
    if len(continuation) > context:
        raise PromptError(f"a continuation has {len(continuation)} tokens but the smallest context is {context}")


def _chunks(passages: list[Passage]) -> Iterator[Row]:
    remaining = iter(passages)
    while chunk := list(islice(remaining, MAX_SHARING)):
        yield chunk


def _length(row: Row) -> int:
    return max(len(passage.tokens) for passage in row)


def _sequence(row: Row, context: int) -> Written:
    first = row[0].tokens[:1]
    return Written(first, GenerationSettings(max_new_tokens=_length(row)), context_length=context)


def _refuse_failed(sequences: Iterable[Written]) -> None:
    for sequence in sequences:
        if sequence.error is not None:
            raise ModelOutputError(sequence.error)
