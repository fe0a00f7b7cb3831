"""Batches of examples of like length: less padding, in an order that is still random."""

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

BATCHES_PER_GROUP = 20  # sorted together: enough to find company of like length, few enough to stay a draw


class LengthGroupedBatches(Sampler[int]):
    """Indices such that each ``batch_size`` of them in a row have like lengths.

    transformers' own strategy feeds every group of batches from long to short, so that tasks with long answers and
    tasks with short ones come in cycles. Here the batches are shuffled again; seed and epoch alone decide the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed} {self.epoch}")
        order = list(range(len(self)))
        rng.shuffle(order)
        group = self.batch_size * BATCHES_PER_GROUP
        whole: list[list[int]] = []
        rest: list[list[int]] = []
        for start in range(0, len(order), group):
            alike = sorted(order[start : start + group], key=self.lengths.__getitem__)
            for at in range(0, len(alike), self.batch_size):
                batch = alike[at : at + self.batch_size]
                (whole if len(batch) == self.batch_size else rest).append(batch)
        rng.shuffle(whole)
        return (index for batch in [*whole, *rest] for index in batch)  # an incomplete batch can only be the last
