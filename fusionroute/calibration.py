"""Which member of an ensemble should draft: the one to whom good answers come as the least surprise.

The paper takes the member with the best benchmark score, which must be known beforehand. Here a few prompts decide, by
bits per byte, which mean the same to every tokenizer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from fusionroute.training.data.rows import draw_rows, name_of, read_answer, read_prompt
from fusionroute.training.progress import Progress, Silent

LIMIT, MAX_NEW_TOKENS = 32, 64
FAR_BEHIND = 0.1  # UniTE's rule of thumb for partners, there of benchmark scores
REFERENCE_FIELDS = ("answer", "target", "completion")
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
            references, of the answer that this member wrote, in the mean of all members that judged it.
        by_reference: which of the two.
        left_out: questions to which some member wrote nothing.
    """

    bits: Mapping[str, tuple[float, ...]]
    by_reference: bool
    left_out: int = 0

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
        DataError: no such file, no rows, rows of another form, or references in some rows only.
    """
    found = []
    for number, row in draw_rows(source, limit, None):
        try:
            found.append(Question(read_prompt(row), _reference(row)))
        except DataError as error:
            raise DataError(f"{name_of(source)}, row {number}: {error}") from None
    if not found:
        raise DataError(f"{name_of(source)} holds no prompts; give at least one")
    missing = sum(question.reference is None for question in found)
    if 0 < missing < len(found):
        raise DataError(
            f"{name_of(source)}: {missing} of {len(found)} rows have no answer; give one to every row, or to none"
        )
    return found


def _reference(row: Mapping[str, Any]) -> str | None:
    for field in REFERENCE_FIELDS:
        if row.get(field) is not None:
            return read_answer(row[field], field) if isinstance(row[field], (str, list)) else str(row[field])
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
    answer, greedily, and all of them judge all answers; so a judge that is hard to please is so with everybody.

    Args:
        max_new_tokens: of an answer, where there are no references.

    Raises:
        SettingsError: fewer than two members, or no questions.
        PromptError: a question that does not fit the context of some member.
        DataError: an empty reference, or a member that writes nothing to any question.
        ModelOutputError: a model returned logits that are no distribution.
    """
    if len(members) < 2 or not questions:
        raise SettingsError(
            f"a drafter is chosen among two members or more, by one question or more; got {len(members)} and "
            f"{len(questions)}"
        )
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


def _checked(reference: str | None) -> bytes:
    if not reference:
        raise DataError("a reference answer is empty, so nothing can be read of it; leave its question out")
    return reference.encode()


def _write_all(
    members: Sequence[Member],
    prompts: Mapping[str, list[list[int]]],
    max_new_tokens: int,
    max_batch: int,
    cache_limit: int | str | None,
    progress: Progress,
) -> dict[str, list[bytes]]:
    """Each member's answers, as bytes, without what its template puts before an answer."""
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
        written = [member.pieces.text(completion.token_ids) for completion in completions]
        answers[member.name] = [text.removeprefix(member.prompt.lead.encode()) for text in written]
    return answers


def _by_answers(
    members: Sequence[Member],
    prompts: Mapping[str, list[list[int]]],
    answers: Mapping[str, list[bytes]],
    progress: Progress,
) -> Calibration:
    for name, written in answers.items():
        if not any(written):
            raise DataError(f"model {name!r} writes nothing to any of the questions; is prompt the format it knows?")
    asked = [at for at in range(len(prompts[members[0].name])) if all(written[at] for written in answers.values())]
    if not asked:
        raise DataError("to every question some member writes nothing; give other questions, or reference answers")
    progress.start("judging", len(members) ** 2 * len(asked))
    bits = {name: [0.0] * len(asked) for name in answers}
    for judge in members:
        read = [prompts[judge.name][at] for at in asked]
        for name, written in answers.items():
            found = _judge(judge, read, [written[at] for at in asked], progress.advance)
            bits[name] = [total + each / len(members) for total, each in zip(bits[name], found, strict=True)]
    left_out = len(prompts[members[0].name]) - len(asked)
    return Calibration({name: tuple(found) for name, found in bits.items()}, by_reference=False, left_out=left_out)


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
