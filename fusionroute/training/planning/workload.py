"""How much a stage has to read: sequences, tokens, padding, steps. Knows of lengths alone, not of models."""

from dataclasses import dataclass
from math import ceil

import numpy as np

from fusionroute.training.settings import StageSettings
from fusionroute.training.trainers.batches import LengthGroupedBatches


@dataclass(frozen=True)
class Workload:
    """One pass over some data.

    Attributes:
        items: examples or pairs.
        tokens: read in one pass, without padding.
        batches: of one process that has all the data.
        rows: the most sequences in a batch; a pair has two.
        longest: tokens of the longest sequence.
        padded: tokens of a mean batch, padding included.
        length: padded length of a mean batch.
    """

    items: int
    tokens: int
    batches: int
    rows: int
    longest: int
    padded: float
    length: int


def scoring_work(lengths: np.ndarray, batch_size: int) -> Workload:
    """Sequences of these lengths, sorted into batches of like length as `score` does."""
    ordered = np.sort(lengths)[::-1]
    return _workload(ordered, np.ones_like(ordered), int(lengths.sum()), batch_size)


def training_work(lengths: np.ndarray, rows: np.ndarray, tokens: int, stage: StageSettings, seed: int) -> Workload:
    """Items in the random order of training.

    Args:
        lengths: of each item, in tokens; of a pair that of its longer sequence.
        rows: sequences of each item, 1 or 2.
        tokens: of all sequences.
    """
    if stage.group_by_length:
        order = np.fromiter(LengthGroupedBatches(lengths.tolist(), stage.batch_size, seed), int, len(lengths))
    else:
        order = np.random.default_rng(seed).permutation(len(lengths))
    return _workload(lengths[order], rows[order], tokens, stage.batch_size)


def _workload(lengths: np.ndarray, rows: np.ndarray, tokens: int, batch_size: int) -> Workload:
    starts = np.arange(0, len(lengths), batch_size)
    rows_together = np.add.reduceat(rows, starts)
    padded = np.maximum.reduceat(lengths, starts) * rows_together
    return Workload(
        items=len(lengths),
        tokens=tokens,
        batches=len(starts),
        rows=min(batch_size, len(lengths)) * int(rows.max()),
        longest=int(lengths.max()),
        padded=float(padded.mean()),
        length=max(2, round(float(padded.sum() / rows_together.sum()))),
    )


def optimizer_steps(items: int, stage: StageSettings, processes: int) -> int:
    """Steps that transformers' Trainer makes of so many items."""
    if stage.max_steps is not None:
        return stage.max_steps
    batches = ceil(ceil(items / stage.batch_size) / processes)
    return ceil(stage.epochs * ceil(batches / stage.accumulation))
