"""One model over many sequences: it reads what it missed when it is next asked."""

from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fusionroute.engine.cache import ReadPlan, SlotCache
from fusionroute.engine.masks import ragged_masks
from fusionroute.engine.sequence import Sequence

PREFILL_CHUNK = 2048  # tokens of one row per pass; bounds the mask and the activations of a long prompt


@dataclass
class Reading:
    """What one model says after the last tokens of each sequence.

    Attributes:
        logits: ``[sequences, last, vocabulary]``.
        route_logits: ``[sequences, last, experts]`` from a router, else None.
    """

    logits: Tensor
    route_logits: Tensor | None = None


class AnyRunner(Protocol):
    """What a method needs of a runner; `Runner` is the fast one, `reference.UncachedRunner` the obvious one."""

    name: str

    @property
    def device(self) -> torch.device: ...
    def read(self, sequences: ListLike[Sequence], last: int = 1) -> Reading: ...
    def rollback(self, sequence: Sequence, length: int) -> None: ...
    def release(self, sequence: Sequence) -> None: ...


class Runner:
    """Feeds each sequence exactly the tokens this model has not read yet, all sequences in one forward pass.

    Args:
        model: a transformers causal LM or a `Router`, in whose outputs ``logits`` (and ``route_logits``) are found.
        name: how errors and traces call it.
    """

    def __init__(self, model: Any, name: str):
        self.model = model.eval()
        self.name = name
        self.config = model.config.get_text_config()
        self.cache = SlotCache()
        self.tokens_read = 0
        self.passes = 0

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.inference_mode()
    def read(self, sequences: ListLike[Sequence], last: int = 1) -> Reading:
        """Read what was missed; return what the model says after each of the ``last`` tokens of every sequence.

        A sequence for which the model returns no finite logits fails, with the model named; the others go on.
        """
        for sequence in sequences:
            if sequence not in self.cache:
                self.cache.join(sequence, sequence.max_length)
            self.cache.cut(sequence, len(sequence) - last)  # logits asked for again mean reading again
        self._read_long_prompts(sequences, last)
        # in the order of their rows, so that a full batch needs no gathering
        order = sorted(range(len(sequences)), key=lambda index: self.cache.row(sequences[index]))
        reading = self._forward([sequences[index] for index in order], last)
        _fail_without_logits(self.name, [sequences[index] for index in order], reading.logits)
        return _in_order(reading, order)

    def rollback(self, sequence: Sequence, length: int) -> None:
        """Cut back to the first ``length`` tokens; a no-op where the model has read no further."""
        if sequence in self.cache:
            self.cache.cut(sequence, length)

    def release(self, sequence: Sequence) -> None:
        """Free whatever this model keeps of the sequence."""
        if sequence in self.cache:
            self.cache.leave(sequence)

    def _read_long_prompts(self, sequences: ListLike[Sequence], last: int) -> None:
        while long := [s for s in sequences if self._missing(s) - last >= PREFILL_CHUNK]:
            self._forward(long, 1, counts=[PREFILL_CHUNK] * len(long))

    def _missing(self, sequence: Sequence) -> int:
        return len(sequence) - self.cache.lengths[sequence]

    def _forward(self, sequences: list[Sequence], last: int, counts: list[int] | None = None) -> Reading:
        plan = self.cache.plan(list(sequences), counts or [self._missing(sequence) for sequence in sequences])
        positions = self._positions(plan)
        output = self.model(
            input_ids=self._inputs(sequences, plan),
            position_ids=positions,
            attention_mask=self._masks(plan, positions),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=last,
        )
        self.cache.commit(list(sequences))
        self.tokens_read += sum(plan.counts)
        self.passes += 1
        return Reading(output.logits[:, -last:], getattr(output, "route_logits", None))

    def _inputs(self, sequences: list[Sequence], plan: ReadPlan) -> Tensor:
        rows = [
            [0] * (plan.width - count) + sequence.token_ids[start : start + count]
            for sequence, start, count in zip(sequences, plan.starts, plan.counts, strict=True)
        ]
        return torch.tensor(rows, device=self.device)

    def _positions(self, plan: ReadPlan) -> Tensor:
        ends = torch.tensor(plan.ends, device=self.device)
        return (ends[:, None] + torch.arange(-plan.width, 0, device=self.device)).clamp(min=0)

    def _masks(self, plan: ReadPlan, positions: Tensor) -> Tensor | dict[str, Tensor] | None:
        if plan.is_uniform:
            return None
        return ragged_masks(self.config, positions, plan.longest, self.model.dtype)


def _in_order(reading: Reading, order: list[int]) -> Reading:
    if order == sorted(order):
        return reading
    back = torch.tensor(order, device=reading.logits.device).argsort()
    routes = reading.route_logits
    return Reading(reading.logits[back], None if routes is None else routes[back.to(routes.device)])


def _fail_without_logits(name: str, sequences: ListLike[Sequence], logits: Tensor) -> None:
    """The largest logit of a sane distribution is finite: NaN and +inf win any maximum, all -inf leaves no other."""
    sane = logits.amax((1, 2)).isfinite()
    if not bool(sane.all()):
        for index in (~sane).nonzero().flatten().tolist():
            sequences[index].fail(f"model {name!r} returned NaN logits after {len(sequences[index])} tokens")
