"""Whether questions to be judged by stand among those learned from: word for word, inside another, or nearly so."""

import re
import string
import unicodedata
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusionroute.errors import DataError
from fusionroute.moe.neighbours import refuse_broken_embeddings
from fusionroute.moe.questions.questions import Question
from fusionroute.moe.questions.quotes import quoted

THRESHOLD = 0.95  # of cosine; published for C3PO's references
# Of the weight of a test question's words; our choice: one passage and question under two templates shared 0.75 to 0.9
QUOTED = 0.6  # of it, different passages of one document less than 0.1
ROWS_TOGETHER = 512
EXAMPLES = 2
Partners = dict[int, dict[int, float]]  # of each training row that has any: rows in test, and how alike they are
# Answers that say nothing without their question, by kinds that are told apart; one question is put in several of them
KINDS = (
    frozenset({"yes", "no"}),
    frozenset({"yes", "no", "maybe"}),
    frozenset({"true", "false"}),
    frozenset({"true", "false", "neither"}),
    frozenset({"correct", "incorrect"}),
    frozenset({"right", "wrong"}),
    frozenset({"positive", "negative", "neutral"}),
    frozenset({"entailment", "neutral", "contradiction"}),
    frozenset({"entailment", "not entailment"}),
)
STAND_INS = frozenset(string.ascii_lowercase + string.digits)  # for any answer, where they are options
LABELS = STAND_INS.union(*KINDS)
OPERATORS = r"[-+*/=<>%^−×÷]"
WORDS = re.compile(rf"[^\W_]+|(?<=\d)\s*{OPERATORS}|{OPERATORS}(?=\s*\d)")


def normalised(text: str) -> str:
    """A text without what two copies of it differ by: case, white space, punctuation, forms of one character.

    Signs beside a number stay: 3 + 5 is not 3 − 5.
    """
    return " ".join(word.strip() for word in WORDS.findall(unicodedata.normalize("NFKC", text).casefold()))


@dataclass(frozen=True)
class Overlap:
    """What training and test questions have in common. Rows count from 0.

    Attributes:
        exact: row in training, row in test; of each training row its first partner.
        quotes: row in training, row in test, share of the latter that stands in the former; of each other training row
            its closest partner.
        near: row in training, row in test, cosine; of each training row that is left its closest partner.
        tests: rows in test that have any partner.
        train, test: how many questions were compared.
    """

    exact: tuple[tuple[int, int], ...]
    quotes: tuple[tuple[int, int, float], ...]
    near: tuple[tuple[int, int, float], ...]
    tests: frozenset[int]
    train: int
    test: int
    threshold: float

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def rows(self) -> frozenset[int]:
        """Rows in training to leave out."""
        return frozenset(row for row, _ in self.exact) | frozenset(row for row, *_ in (*self.quotes, *self.near))

    def __str__(self) -> str:
        return (
            f"{len(self.rows):,} of {self.train:,} training questions are among the {self.test:,} to be judged by, "
            f"where they meet {len(self.tests):,} ({len(self.exact):,} word for word, {len(self.quotes):,} by "
            f"most of their words, {len(self.near):,} nearly, with a cosine above {self.threshold:g})"
        )


def overlap(
    train: Sequence[str | Question],
    test: Sequence[str | Question],
    *,
    embeddings: tuple[Tensor, Tensor] | None = None,
    threshold: float = THRESHOLD,
    centre: Tensor | None = None,
) -> Overlap:
    """Which training questions are test questions too.

    Word for word: equal prompts after `normalised`, or a prompt that equals another one with its options written out
    behind it. By most of their words: most rare runs of words of a long test prompt stand in a training prompt, as
    under another template, or where another short question is asked about the same passage; see `quoted`. Nearly:
    embeddings with a cosine above ``threshold``.

    Where questions are given and not their texts alone, equal prompts with other options and another answer ("Which of
    these is true?") are different questions, and so are prompts that are merely alike with another answer. Options such
    as yes and no, True and False, or A to D tell no question from another: see `LABELS`. Of messages, what the user
    says is compared.

    Args:
        embeddings: of ``train`` and ``test``, ``[n, d]`` and ``[m, d]``; None compares words alone.
        centre: subtracted from embeddings first, ``[d]``; see `Pathways.centre`. Mean hidden states need it, for their
            cosines are all near 1.

    Raises:
        ModelOutputError: embeddings that are no numbers, of which no cosine is above anything.
    """
    ours, theirs = [_Asked.of(each) for each in train], [_Asked.of(each) for each in test]
    exact = {row: dict.fromkeys(partners, 1.0) for row, partners in _exact_pairs(ours, theirs).items()}
    quotes = _possible(quoted([each.prompt for each in ours], [each.prompt for each in theirs], QUOTED), ours, theirs)
    near: Partners = {}
    if embeddings is not None:
        assert [len(each) for each in embeddings] == [len(train), len(test)], "one embedding per question"
        refuse_broken_embeddings(*embeddings)
        near = _possible(_near_pairs(embeddings, threshold, centre), ours, theirs)
    return Overlap(
        exact=tuple((row, min(partners)) for row, partners in exact.items()),
        quotes=_closest(quotes, besides=exact.keys()),
        near=_closest(near, besides=exact.keys() | quotes.keys()),
        tests=frozenset(row for pairs in (exact, quotes, near) for partners in pairs.values() for row in partners),
        train=len(train),
        test=len(test),
        threshold=threshold,
    )


def refuse_overlap(found: Overlap, train: Sequence[str | Question], name: str = "the evaluation questions") -> None:
    """Raise `DataError` with counts and examples if there is any.

    Args:
        train: as given to `overlap`.
        name: what the test questions are called.
    """
    if found:
        shown = [f"row {row + 1}: {_shortened(_text(train[row]))!r}" for row in sorted(found.rows)[:EXAMPLES]]
        raise DataError(
            f"training data and {name} overlap: {found}; {'; '.join(shown)}. Scores on them would say nothing: leave "
            "these rows out of training, judge by others, or allow the overlap and say so with every result"
        )


def directions(embeddings: Tensor, centre: Tensor | None = None) -> Tensor:
    """Rows of length 1, float32, counted from ``centre``; their products are cosines. A row of 0 stays 0."""
    moved = embeddings.float() if centre is None else embeddings.float() - centre.to(embeddings.device).float()
    return torch.nn.functional.normalize(moved, dim=-1)


@dataclass(frozen=True)
class _Asked:
    """A question as far as copies of it are concerned: normalised."""

    prompt: str
    options: frozenset[str]
    in_full: str  # the prompt with its options behind it
    answer: str

    @classmethod
    def of(cls, question: str | Question) -> "_Asked":
        if isinstance(question, str):
            return cls(normalised(question), frozenset(), "", "")
        prompt, options = normalised(_said(question)), [normalised(option) for option in question.options]
        return cls(
            prompt, frozenset(options), " ".join([prompt, *options]) if options else "", normalised(question.answer)
        )

    @property
    def vocabulary(self) -> frozenset[str]:
        """What could have been answered; none if anything could."""
        return self.options or next((kind for kind in KINDS if self.answer in kind), frozenset())

    @property
    def has_labels(self) -> bool:
        """Whether its answers say nothing of what is asked."""
        return bool(self.vocabulary) and self.vocabulary <= LABELS

    @property
    def has_stand_ins(self) -> bool:
        return bool(self.options) and self.options <= STAND_INS

    def may_be(self, other: "_Asked") -> bool:
        """Whether options or answers leave it open that both are one question."""
        if not self.options or not other.options or self.has_labels or other.has_labels:
            return True
        return self.options == other.options or self.answer == other.answer

    def may_be_nearly(self, other: "_Asked") -> bool:
        """The same of questions whose prompts differ: what follows h and what follows y are two questions."""
        return self._may_be_answered_like(other) and self.may_be(other)

    def _may_be_answered_like(self, other: "_Asked") -> bool:
        ours, theirs = f" {self.answer} ", f" {other.answer} "  # a worked answer holds the bare one
        if not self.answer or not other.answer or ours in theirs or theirs in ours:
            return True
        if {self.answer, other.answer} <= self.vocabulary & other.vocabulary:
            return False
        return self.has_stand_ins or other.has_stand_ins or (self.has_labels and other.has_labels)


def _exact_pairs(train: list[_Asked], test: list[_Asked]) -> dict[int, list[int]]:
    """Partners of each training row that has any."""
    rows_of, rows_in_full = defaultdict(list), defaultdict(list)
    for row, asked in enumerate(test):
        rows_of[asked.prompt].append(row)
        if asked.in_full:
            rows_in_full[asked.in_full].append(row)
    pairs = {}
    for row, asked in enumerate(train):
        partners = {at for at in rows_of.get(asked.prompt, ()) if asked.may_be(test[at])}
        partners |= set(rows_in_full.get(asked.prompt, ()))
        partners |= set(rows_of.get(asked.in_full, ())) if asked.in_full else set()
        if partners:
            pairs[row] = sorted(partners)
    return pairs


def _near_pairs(embeddings: tuple[Tensor, Tensor], threshold: float, centre: Tensor | None) -> Partners:
    ours, theirs = (directions(each, centre) for each in embeddings)
    pairs = defaultdict[int, dict[int, float]](dict)
    for start in range(0, len(ours), ROWS_TOGETHER):
        cosines = ours[start : start + ROWS_TOGETHER] @ theirs.T
        rows, test_rows = (cosines > threshold).nonzero(as_tuple=True)
        values = cosines[rows, test_rows].tolist()
        for row, test_row, cosine in zip(rows.tolist(), test_rows.tolist(), values, strict=True):
            pairs[start + row][test_row] = cosine
    return dict(pairs)


def _possible(pairs: Partners, train: list[_Asked], test: list[_Asked]) -> Partners:
    """Without those whose options and answers say that they are different questions."""
    kept = {
        row: {at: value for at, value in partners.items() if train[row].may_be_nearly(test[at])}
        for row, partners in pairs.items()
    }
    return {row: partners for row, partners in kept.items() if partners}


def _closest(pairs: Partners, besides: Set[int]) -> tuple[tuple[int, int, float], ...]:
    """Of each training row its closest partner, but for rows that are counted already."""
    closest = {row: max(partners, key=partners.__getitem__) for row, partners in pairs.items() if row not in besides}
    return tuple((row, at, pairs[row][at]) for row, at in sorted(closest.items()))


def _said(question: Question) -> str:
    """What the user says: roles, and what a system prompt says, are no part of a question."""
    messages: Any = question.prompt
    if isinstance(messages, str):
        return messages
    said = [message["content"] for message in messages if message["role"] == "user"]
    return "\n\n".join(said or [message["content"] for message in messages])


def _text(question: str | Question) -> str:
    return question if isinstance(question, str) else question.text


def _shortened(text: str, longest: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
