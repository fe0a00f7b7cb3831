"""What there is to learn from: the data of a team file, read and tokenised, not scored."""

from dataclasses import dataclass
from itertools import islice

import numpy as np

from fusionroute.errors import DataError
from fusionroute.models.prompt import Prompt, PromptFormat
from fusionroute.progress import Progress
from fusionroute.rows import Source
from fusionroute.training.data.examples import prepare
from fusionroute.training.data.preferences import prepare_pairs
from fusionroute.training.data.rows import read_rows
from fusionroute.training.pairs.questions import survey
from fusionroute.training.planning.precheck import Basis
from fusionroute.training.scoring.fingerprint import token_counts
from fusionroute.training.settings import PairSettings, TrainSettings


@dataclass(frozen=True)
class Inventory:
    """Lengths in tokens, and a line on each source.

    Attributes:
        examples: ``[examples]``.
        pairs: of the chosen and the rejected answer, each with its prompt, ``[pairs, 2]``; none without stage 2.
        are_made: the pairs are still to be made of so many prompts: at most as many, and at most as long.
        lines: what became of the rows that were read.
    """

    examples: np.ndarray
    pairs: np.ndarray
    are_made: bool
    lines: tuple[str, ...]

    def mixed(self, settings: TrainSettings) -> int:
        """Examples that go beside the pairs. Raises `DataError` if there are fewer than the settings want."""
        wanted = settings.cdpo.sft_examples if settings.cdpo else 0
        if wanted is None:
            return min(len(self.pairs), len(self.examples))
        if wanted > len(self.examples):
            raise DataError(
                f"cdpo.sft_examples is {wanted:,}, but {settings.data.train} gives only {len(self.examples):,}; lower "
                "it, or leave it out for as many examples as there are pairs"
            )
        return wanted


def take_inventory(settings: TrainSettings, basis: Basis, max_length: int, progress: Progress) -> Inventory:
    """Read every row that a run would read. Raises `DataError` as the run would."""
    data, lines = settings.data, list[str]()
    reading = _Watched(basis, settings.prompt, progress)
    reading.start("read data.train", (data.exclude, None), (data.train, data.limit))
    dataset, report = prepare(
        data.train,
        reading,
        max_length,
        all_tokens=data.all_tokens,
        limit=data.limit,
        draw_seed=settings.draw_seed,
        exclude=data.exclude,
    )
    lines.append(f"data.train: {report}")
    examples, pairs = token_counts(dataset), np.empty((0, 2), int)
    if data.pairs is not None:
        reading.start("read data.pairs", (data.exclude, None), (data.pairs, data.pairs_limit))
        dataset, report = prepare_pairs(
            data.pairs, reading, max_length, limit=data.pairs_limit, draw_seed=settings.draw_seed, exclude=data.exclude
        )
        pairs = token_counts(dataset).reshape(-1, 2)
        lines.append(f"data.pairs: {report}")
    elif settings.pairs is not None:
        pairs = _pairs_at_most(settings.pairs, reading, max_length)
        lines.append(f"pairs.prompts: {len(pairs):,} prompts; a pair is made of each that the team gets wrong")
    for line in lines:
        progress.finish(line)
    return Inventory(examples, pairs, settings.pairs is not None, tuple(lines))


def _pairs_at_most(settings: PairSettings, reading: "_Watched", max_length: int) -> np.ndarray:
    reading.start("read pairs.prompts", (settings.prompts, settings.limit))
    survey(settings, reading)
    longest = np.minimum(np.array(reading.lengths) + settings.max_new_tokens, max_length)
    return np.stack([longest, longest], axis=1)


class _Watched(PromptFormat):
    """Tells a progress of every prompt, and keeps their lengths."""

    def __init__(self, basis: Basis, name: str | None, progress: Progress):
        super().__init__(basis.tokenizer, name)
        self.progress = progress
        self.lengths: list[int] = []

    def start(self, label: str, *sources: tuple[Source | None, int | None]) -> None:
        """Of each source so many rows will be read."""
        self.lengths = []
        self.progress.start(label, sum(_rows(source, limit) for source, limit in sources if source is not None))

    def encode(self, prompt: Prompt) -> list[int]:
        ids = super().encode(prompt)
        self.lengths.append(len(ids))
        self.progress.advance(1)
        return ids


def _rows(source: Source, limit: int | None) -> int:
    """Counted, which is quick beside tokenising; a limit is taken at its word."""
    return limit or sum(1 for _ in islice(read_rows(source), limit))
