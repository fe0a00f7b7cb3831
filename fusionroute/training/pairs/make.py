"""Preference pairs of the team's own mistakes: what it writes by itself, against something that is judged better.

Pairs that the team gets right anyway saturate the loss of stage 2 (spec, section 12), so each rejected answer is the
team's own greedy one.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fusionroute.config import GenerationSettings
from fusionroute.engine.sequence import Completion
from fusionroute.errors import DataError, OutputExistsError
from fusionroute.output import write_text
from fusionroute.progress import Progress, Silent
from fusionroute.training.pairs.judges import Judge, make_judge
from fusionroute.training.pairs.parts import Parts
from fusionroute.training.pairs.questions import Question, read_questions, survey
from fusionroute.training.pairs.writer import Writer
from fusionroute.training.settings import PairSettings

logger = logging.getLogger(__name__)

REFERENCE, SAMPLE = "reference", "sample"
UNFIT = {"length": "cut", "error": "failed"}  # finish reasons of an answer that cannot be rejected, and their counts


@dataclass(frozen=True)
class PairReport:
    """What became of the prompts; each is counted once. ``str()`` of it is one line for people.

    Attributes:
        pairs: prompts that gave a pair.
        right: no other answer is judged better than the team's own, or all there are say the same as the reference.
        close: one is, but not by more than the margin.
        alone: there is no other answer: none that ended, or all say the same, and no reference.
        unjudged: the team's answer, or every other one, has no score.
        cut: the team's answer did not end in time. It was never ended by the team, yet data for training ends with an
            end of sequence: such a pair would speak of an end that nobody wrote.
        empty: the team's answer is empty.
        failed: a model failed while the team's answer was written.
        too_long: the prompt leaves no room for an answer.
        max_new_tokens: the length at which answers are cut.
    """

    max_new_tokens: int
    pairs: int = 0
    right: int = 0
    close: int = 0
    alone: int = 0
    unjudged: int = 0
    cut: int = 0
    empty: int = 0
    failed: int = 0
    too_long: int = 0

    @property
    def prompts(self) -> int:
        return sum(asdict(self).values()) - self.max_new_tokens

    def __str__(self) -> str:
        said = {
            f"{self.right:,} right at once": self.right,
            f"{self.close:,} with an answer too little better": self.close,
            f"{self.alone:,} without any other answer": self.alone,
            f"{self.unjudged:,} dropped because no score was given": self.unjudged,
            f"{self.cut:,} dropped because the answer was cut at {self.max_new_tokens:,} tokens": self.cut,
            f"{self.empty:,} dropped because the answer is empty": self.empty,
            f"{self.failed:,} dropped because a model failed": self.failed,
            f"{self.too_long:,} dropped because the prompt leaves no room for an answer": self.too_long,
        }
        return "; ".join([f"{self.pairs:,} pairs of {self.prompts:,} prompts", *(t for t, n in said.items() if n)])


def make_pairs(
    writer: Writer,
    settings: PairSettings,
    output: str | Path,
    *,
    judge: Judge | None = None,
    device: str | None = None,
    overwrite: bool = False,
    prompts_per_part: int = 256,
    progress: Progress | None = None,
) -> PairReport:
    """Let ``writer`` answer, let a judge compare, and write a pair wherever something better than its answer is known.

    The same call continues what was interrupted, from ``<output>.parts``, and gives the same file.

    Args:
        writer: whose mistakes; see `team_writer` and `expert_writer`.
        output: gets one JSON object a line: ``prompt``, ``chosen``, ``rejected``, ``judged`` (the scores of both) and
            ``chosen_from`` ("reference" or "sample").
        judge: None = as the settings say; ``device`` is for their reward model.
        overwrite: replace ``output``, and parts of something else, if they are there.
        prompts_per_part: what a killed run has to do again at most.

    Raises:
        OutputExistsError: ``output`` exists, or its parts are of other settings, prompts or models.
        DataError: no prompts, a row that holds none (named), or not a single pair.
        SettingsError: no samples and no reference answers; or as the judge does.
    """
    output, progress = Path(output), progress or Silent()
    refuse_existing_pairs(output, overwrite=overwrite)
    judge = judge or make_judge(settings, device=device)
    prompts = survey(settings, writer.prompt_format)
    identity = {
        "settings": settings.model_dump(mode="json", exclude={"prompts"}),  # what is asked counts, not where it lies
        "prompts": prompts,
        "models": writer.identity,
        "parts": {"prompts_per_part": prompts_per_part},
    }
    parts = Parts.open(output.with_name(f"{output.name}.parts"), identity, overwrite=overwrite)
    progress.start("make pairs", prompts["count"] * (1 + settings.samples))
    for number, questions in enumerate(_chunks(read_questions(settings, writer.prompt_format), prompts_per_part)):
        if number in parts:
            progress.advance(len(questions) * (1 + settings.samples), "made before")
        else:
            parts.write(number, *_make_part(writer, questions, settings, judge, progress))
    return _join(parts, output, settings, progress)


def refuse_existing_pairs(output: Path, *, overwrite: bool = False) -> None:
    """Raise `OutputExistsError` if ``output`` is there, and not to be replaced or no file."""
    if output.exists() and not (overwrite and output.is_file()):
        raise OutputExistsError(f"{output} exists already; choose another output file, or ask for it to be overwritten")


def _chunks(questions: Iterator[Question], size: int) -> Iterator[list[Question]]:
    while chunk := list(islice(questions, size)):
        yield chunk


def _make_part(
    writer: Writer, questions: list[Question], settings: PairSettings, judge: Judge, progress: Progress
) -> tuple[list[dict[str, Any]], Counter[str]]:
    fitting = [question for question in questions if len(question.ids) < writer.context_length]
    per_prompt = 1 + settings.samples
    progress.advance(per_prompt * (len(questions) - len(fitting)))
    answers = writer.write(
        [question.ids for question in fitting for _ in range(per_prompt)],
        [decoding(settings, question.number, at) for question in fitting for at in range(per_prompt)],
        lambda sequence: progress.advance(1),
    )
    for error in {answer.error for answer in answers if answer.error}:
        logger.warning("an answer was lost: %s", error)
    drawn = [answers[at + 1 : at + per_prompt] for at in range(0, len(answers), per_prompt)]
    pairs, counts = select_pairs(fitting, answers[::per_prompt], drawn, judge, settings.margin)
    progress.advance(0, f"{len(pairs)} pairs of the last {len(questions)} prompts")
    return pairs, counts + Counter(too_long=len(questions) - len(fitting))


def decoding(settings: PairSettings, number: int, sample: int) -> GenerationSettings:
    """How the answer ``sample`` to prompt ``number`` is decoded: 0 greedily, others by a seed of their own."""
    if sample == 0:
        return GenerationSettings(max_new_tokens=settings.max_new_tokens)
    seed = np.random.SeedSequence([settings.seed, number, sample]).generate_state(1, np.uint64)
    return GenerationSettings(
        max_new_tokens=settings.max_new_tokens,
        do_sample=True,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=int(seed[0]),
    )


def select_pairs(
    questions: Sequence[Question],
    greedy: Sequence[Completion],
    samples: Sequence[Sequence[Completion]],
    judge: Judge,
    margin: float = 0.0,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rule: the best other answer is preferred if it is judged better than the greedy one by more than ``margin``.

    Other answers are the reference and the samples that ended; of equally good ones the first is taken. Equal answers
    to one prompt are judged once.

    Returns:
        the pairs, as `make_pairs` writes them, and how many prompts met which fate of `PairReport`.
    """
    counts: Counter[str] = Counter()
    contests = []
    for question, own, drawn in zip(questions, greedy, samples, strict=True):
        others = _others(question.reference, own, drawn)
        unfit = UNFIT.get(own.finish_reason) or ("empty" if not own.text.strip() else "")
        if unfit or not others:
            counts[unfit or ("right" if _is_same(own.text, question.reference) else "alone")] += 1
        else:
            contests.append((question, [(own.text, ""), *others]))
    pairs = []
    for (question, answers), scores in zip(contests, _judge(contests, judge), strict=True):
        fate, best = _verdict(scores, margin)
        counts[fate] += 1
        if fate == "pairs":
            pairs.append(_pair(question, answers, scores, best))
    return pairs, counts


def _is_same(one: str, other: str) -> bool:
    return one.strip() == other.strip()


def _others(reference: str, own: Completion, drawn: Sequence[Completion]) -> list[tuple[str, str]]:
    """Different answers that the team's own can be compared with, the reference first, and where each is from."""
    found: dict[str, tuple[str, str]] = {}
    for text, source in [(reference, REFERENCE), *((c.text, SAMPLE) for c in drawn if c.finish_reason == "stop")]:
        if text.strip() and not _is_same(text, own.text):
            found.setdefault(text.strip(), (text, source))
    return list(found.values())


def _judge(contests: Sequence[tuple[Question, list[tuple[str, str]]]], judge: Judge) -> list[list[float | None]]:
    """Scores of each contest's answers; all are judged in one call, so that the judge can batch."""
    rows = [question.row for question, answers in contests for _ in answers]
    scores = judge(rows, [text for _, answers in contests for text, _ in answers]) if rows else []
    assert len(scores) == len(rows), "a judge gives every answer a score or None"
    left = iter(scores)
    return [list(islice(left, len(answers))) for _, answers in contests]


def _verdict(scores: Sequence[float | None], margin: float) -> tuple[str, int]:
    """What became of a prompt, and the place of the best other answer; the first score is the team's own."""
    own, *others = scores
    known = [(score, at) for at, score in enumerate(others, start=1) if score is not None]
    if own is None or not known:
        return "unjudged", 0
    score, best = max(known, key=lambda found: found[0])  # the first of equals
    if score <= own:
        return "right", best
    return ("pairs" if score - own > margin else "close"), best


def _pair(
    question: Question, answers: Sequence[tuple[str, str]], scores: Sequence[float | None], best: int
) -> dict[str, Any]:
    chosen, source = answers[best]
    return {
        "prompt": question.row["prompt"],
        "chosen": chosen,
        "rejected": answers[0][0],
        "judged": {"chosen": scores[best], "rejected": scores[0]},
        "chosen_from": source,
    }


def _join(parts: Parts, output: Path, settings: PairSettings, progress: Progress) -> PairReport:
    pairs, counts = parts.read()
    report = PairReport(settings.max_new_tokens, **counts)
    if pairs:
        write_text(output, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    parts.remove()  # also of no use where there is no pair: another try needs other settings
    if not pairs:
        raise DataError(f"nothing to learn: {report}; draw more samples, lower the margin or give harder prompts")
    progress.finish(str(report))
    return report
