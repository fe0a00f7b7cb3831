"""Which member of an ensemble should draft: the one to whom good answers come as the least surprise.

The paper takes the member with the best benchmark score, which must be known beforehand. Here a few prompts decide, by
bits per byte, which mean the same to every tokenizer.
"""

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusionroute.answering import check_text
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import MAX_BATCH, Engine
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence as Written
from fusionroute.errors import DataError, ModelOutputError, PromptError, SettingsError
from fusionroute.evaluation.statistics import Difference, Estimate, paired_difference, stratified_mean
from fusionroute.methods.single import Single
from fusionroute.models.member import Member
from fusionroute.models.prompt import Prompt
from fusionroute.models.team import context_length
from fusionroute.progress import Progress, Silent
from fusionroute.rows import name_of
from fusionroute.training.data.rows import draw_rows, read_answer, read_prompt

LIMIT, MAX_NEW_TOKENS = 32, 64
FAR_BEHIND = 0.1  # UniTE's rule of thumb for partners, there of benchmark scores
REFERENCE_FIELDS = ("answer", "target", "completion")
LEAST_LOOP = 16  # bytes: what is shorter repeats itself by chance
ROWS_TOGETHER = 256  # positions whose logits are turned into float32 at once


@dataclass(frozen=True)
class Question:
    """A prompt, and what a good answer to it is if that is known."""

    prompt: Prompt
    reference: str | None = None


@dataclass(frozen=True)
class Calibration:
    """How much each member is behind the best.

    Attributes:
        bits: by member, for each question: bits per byte of the reference after the member's own prompt; or, without
            references, of the answer that this member wrote, as the other members judge it: what their mean would be
            had every member judged every answer but by its own measure of hard and easy.
        by_reference: which of the two. The second is a guess: an answer that others foresee need not be a good one.
        left_out: questions to which some member wrote nothing.
        looping: by member, how many of its answers were cut off while they repeated themselves. Everybody foresees
            those, so their bits say nothing.
    """

    bits: Mapping[str, tuple[float, ...]]
    by_reference: bool
    left_out: int = 0
    looping: Mapping[str, int] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The member to draft: the lowest mean; the first of equals."""
        return min(self.bits, key=lambda name: sum(self.bits[name]))

    @property
    def n(self) -> int:
        return len(next(iter(self.bits.values())))

    def mean(self, name: str) -> Estimate:
        """Bits per byte, with a bootstrap interval over questions."""
        return stratified_mean([self.bits[name]])

    def behind(self, name: str) -> Difference:
        """How many more bits per byte than the best, on the same questions."""
        return paired_difference([self.bits[name]], [self.bits[self.best]])

    def is_within_noise(self, name: str) -> bool:
        """Whether other questions might have put this member first."""
        return self.behind(name).p > 0.05

    def far_behind(self) -> dict[str, float]:
        """Members that may do more harm than good, and by how much of the best's bits they are behind."""
        best = self.mean(self.best).value
        shares = {name: self.mean(name).value / best - 1 for name in self.bits if best > 0}
        return {name: share for name, share in shares.items() if share > FAR_BEHIND}


def read_questions(source: str | Path, limit: int | None = LIMIT) -> list[Question]:
    """Questions of a file: objects with `prompt` or `messages`, and `answer` (or `target`, `completion`) if known.

    Raises:
        DataError: no such file, no rows, rows of another form, text that is not UTF-8, or references in some rows only.
    """
    found = [_question(row, f"{name_of(source)}, row {number}") for number, row in draw_rows(source, limit, None)]
    if not found:
        raise DataError(f"{name_of(source)} holds no prompts; give at least one")
    missing = sum(question.reference is None for question in found)
    if 0 < missing < len(found):
        raise DataError(
            f"{name_of(source)}: {missing} of {len(found)} rows have no answer; give one to every row, or to none"
        )
    return found


def _question(row: Mapping[str, Any], place: str) -> Question:
    try:
        question = Question(read_prompt(row), _reference(row))
        check_text(question.prompt)
        check_text(question.reference or "", "the answer")
    except (DataError, PromptError) as error:
        raise DataError(f"{place}: {error}") from None
    return question


def _reference(row: Mapping[str, Any]) -> str | None:
    for name in REFERENCE_FIELDS:
        if row.get(name) is not None:
            return read_answer(row[name], name) if isinstance(row[name], (str, list)) else str(row[name])
    messages = row.get("messages") or [{}]
    return str(messages[-1]["content"]) if messages[-1].get("role") == "assistant" else None


def choose_drafter(
    members: Sequence[Member],
    questions: Sequence[Question],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_batch: int = MAX_BATCH,
    cache_limit: int | str | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Compare members on a few questions.

    With references each member reads each of them once, after its own prompt. Without, every member writes a short
    answer, greedily, and all others judge it. Nobody judges itself: to its own first choices a model is never
    surprised, least of all one that loops or is too sure of itself. Answers are compared within each judge, so how
    hard a judge is to please cancels out. This takes three members, and tells which answers the others would rather
    have written, which is a guess at which are good: a member that alone knows the task is outvoted.

    Args:
        max_new_tokens: of an answer, where there are no references.

    Raises:
        SettingsError: fewer than two members, two without references, or no questions.
        PromptError: a question that does not fit the context of some member, or is no valid text.
        DataError: an empty reference, one that is no valid text, or a member that writes nothing to any question.
        ModelOutputError: a model returned logits that are no distribution.
    """
    if len(members) < 2 or not questions:
        raise SettingsError(
            f"a drafter is chosen among two members or more, by one question or more; got {len(members)} and "
            f"{len(questions)}"
        )
    check_judges(members, questions)
    for question in questions:
        check_text(question.prompt, "a question")
    progress = progress or Silent()
    prompts = {member.name: [member.prompt.encode(question.prompt) for question in questions] for member in members}
    references = [question.reference for question in questions]
    if all(reference is not None for reference in references):
        texts = [_checked(reference) for reference in references]
        progress.start("reading", len(members) * len(texts))
        bits = {member.name: _judge(member, prompts[member.name], texts, progress.advance) for member in members}
        return Calibration({name: tuple(found) for name, found in bits.items()}, by_reference=True)
    answers = _write_all(members, prompts, max_new_tokens, max_batch, cache_limit, progress)
    return _by_answers(members, prompts, answers, progress)


def check_judges(members: Sized, questions: Sequence[Question]) -> None:
    """Insist on answers to the questions where members are too few to judge each other. Raises `SettingsError`."""
    if len(members) == 2 and any(question.reference is None for question in questions):
        raise SettingsError(
            "two models without reference answers cannot be told apart: each would have the other alone as judge; "
            "give every prompt a good answer"
        )


def _checked(reference: str | None) -> bytes:
    if not reference:
        raise DataError("a reference answer is empty, so nothing can be read of it; leave its question out")
    try:
        check_text(reference, "a reference answer")
    except PromptError as error:
        raise DataError(str(error)) from None
    return reference.encode()


@dataclass(frozen=True)
class _Answer:
    text: bytes  # without what the template puts before an answer
    is_loop: bool


def is_loop(text: bytes) -> bool:
    """Whether the second half of a text is the same again and again, at least twice."""
    tail = text[len(text) // 2 :]
    return len(tail) >= LEAST_LOOP and any(tail[period:] == tail[:-period] for period in range(1, len(tail) // 2 + 1))


def _write_all(
    members: Sequence[Member],
    prompts: Mapping[str, list[list[int]]],
    max_new_tokens: int,
    max_batch: int,
    cache_limit: int | str | None,
    progress: Progress,
) -> dict[str, list[_Answer]]:
    """Each member's answers."""
    settings = GenerationSettings.parse({"max_new_tokens": max_new_tokens})
    progress.start("writing", sum(len(asked) for asked in prompts.values()))
    answers = {}
    for member in members:
        method = Single(member.model, member.name)
        engine = Engine(method, member.pieces.tokenizer, max_batch=max_batch, cache_limit=cache_limit)
        completions = engine.generate(prompts[member.name], settings, lambda _: progress.advance(1, ""))
        for completion in completions:
            if completion.error is not None:
                raise ModelOutputError(completion.error)
        lead = member.prompt.lead.encode()
        texts = [member.pieces.text(completion.token_ids).removeprefix(lead) for completion in completions]
        answers[member.name] = [
            _Answer(text, completion.finish_reason == "length" and is_loop(text))
            for text, completion in zip(texts, completions, strict=True)
        ]
    return answers


def _by_answers(
    members: Sequence[Member],
    prompts: Mapping[str, list[list[int]]],
    answers: Mapping[str, list[_Answer]],
    progress: Progress,
) -> Calibration:
    for name, written in answers.items():
        if not any(answer.text for answer in written):
            raise DataError(f"model {name!r} writes nothing to any of the questions; is prompt the format it knows?")
    count = len(prompts[members[0].name])
    asked = [at for at in range(count) if all(written[at].text for written in answers.values())]
    if not asked:
        raise DataError("to every question some member writes nothing; give other questions, or reference answers")
    size = len(members)
    progress.start("judging", size * (size - 1) * len(asked))
    judged = np.full((size, size, len(asked)), np.nan)  # by judge and writer
    for at, judge in enumerate(members):
        read = [prompts[judge.name][question] for question in asked]
        for writer, (name, written) in enumerate(answers.items()):
            if name != judge.name:
                texts = [written[question].text for question in asked]
                judged[at, writer] = _judge(judge, read, texts, progress.advance)
    bits = dict(zip(answers, levelled(judged).tolist(), strict=True))
    looping = {name: sum(written[at].is_loop for at in asked) for name, written in answers.items()}
    return Calibration(
        {name: tuple(found) for name, found in bits.items()},
        by_reference=False,
        left_out=count - len(asked),
        looping={name: number for name, number in looping.items() if number},
    )


def levelled(judged: np.ndarray) -> np.ndarray:
    """What each writer's answers are worth where nobody judges its own, ``[writers, questions]``.

    Each judge's mean over the answers of a question is taken off, and what is left of a writer is averaged over its
    judges. The writer's own part in those means is scaled away, so that this is the least-squares fit of
    ``judge + writer``; the mean over all that was judged is added again.

    Args:
        judged: bits ``[judges, writers, questions]``; NaN where a writer meets itself. At least three of each.
    """
    size = len(judged)
    within = judged - np.nanmean(judged, axis=1, keepdims=True)
    found: np.ndarray = np.nanmean(within, axis=0) / (1 - 1 / (size - 1) ** 2) + np.nanmean(judged, axis=(0, 1))
    return found


def _judge(
    member: Member, prompts: Sequence[list[int]], texts: Sequence[bytes], advance: Callable[[int, str], None]
) -> list[float]:
    """Bits per byte of each text after its prompt, according to one member."""
    runner, found = Runner(member.model, member.name), []
    for prompt, text in zip(prompts, texts, strict=True):
        ids = member.pieces.encode(member.prompt.lead.encode() + text)
        found.append(_bits(runner, prompt, ids) / len(text))
        advance(1, member.name)
    return found


@torch.inference_mode()
def _bits(runner: Runner, prompt: list[int], ids: list[int]) -> float:
    """-log2 of the probability of ``ids`` after ``prompt``."""
    length, limit = len(prompt) + len(ids), context_length(runner.model)
    if length > limit:
        raise PromptError(
            f"a question and its answer have {length} tokens for model {runner.name!r}, whose context is {limit}; "
            "leave it out, or shorten it"
        )
    sequence = Written([*prompt, *ids], GenerationSettings())
    try:
        logits = runner.read([sequence], len(ids) + 1).logits[0, :-1]
    finally:
        runner.release(sequence)
    if sequence.error is not None:
        raise ModelOutputError(sequence.error)
    tokens = torch.tensor(ids, device=logits.device)
    pairs = zip(logits.split(ROWS_TOGETHER), tokens.split(ROWS_TOGETHER), strict=True)
    return sum(_nats(rows.float(), chosen) for rows, chosen in pairs) / log(2)


def _nats(logits: Tensor, tokens: Tensor) -> float:
    chosen = logits.gather(-1, tokens[:, None]).squeeze(-1)
    return float((logits.logsumexp(-1) - chosen).double().sum())
