"""Decoding one token after another, with a clock that starts behind the prompt: by our engine and by `generate`.

A pass over a prompt costs something else than a step. So what is timed is the way from the first new token to the last.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from fusionroute import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.method import Method
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence


class Clock(StoppingCriteria):
    """Stops nothing; remembers when each token was there."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self.tick(input_ids.device)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def tick(self, device: torch.device) -> None:
        synchronise(device)
        self.ticks.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """From the first token to the last."""
        return self.ticks[-1] - self.ticks[0]


def _written(sequences: list[Sequence]) -> int:
    return sum(sequence.position for sequence in sequences)


def synchronise(device: torch.device) -> None:
    """Wait for what an accelerator still does; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Ours:
    """A method that completes prompts of one length all at once, every answer ``new`` tokens long.

    Attributes:
        runners: one for each model, with what they read in the last run and what their caches hold.
        first: seconds to the first token of all, of the last run: the prompts are read meanwhile.
    """

    def __init__(self, method: Callable[[], Method], prompts: list[list[int]], new: int, *, is_sampled: bool = False):
        self.method, self.prompts, self.new = method, prompts, new
        self.settings = GenerationSettings(max_new_tokens=new, ignore_eos=True, do_sample=is_sampled, seed=3)
        self.runners: tuple[Runner, ...] = ()

    def __call__(self) -> float:
        """Seconds per token of each sequence, from when all have their first one."""
        method = self.method()
        engine, clock = Engine(method, max_batch=len(self.prompts)), Clock()
        self.runners = tuple(method.runners)  # type: ignore[arg-type]
        device, began = self.runners[0].device, time.perf_counter()
        sequences = [engine.submit(prompt, self.settings) for prompt in self.prompts]
        while not engine.is_idle:
            engine.step()
            if all(sequence.position for sequence in sequences):
                clock.tick(device)
                if len(clock.ticks) == 1:
                    self.first, before = clock.ticks[0] - began, _written(sequences)
        self.traces = [[record.expert for record in sequence.completion().trace] for sequence in sequences]
        return clock.seconds / (_written(sequences) - before) * len(sequences)

    @property
    def cache_bytes(self) -> int:
        """Of all models, as allocated."""
        return sum(runner.cache.nbytes for runner in self.runners)


class Theirs:
    """`generate` of one model on the same prompts."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], new: int):
        self.model, self.ids, self.new = model, torch.tensor(prompts, device=model.device), new

    def __call__(self) -> float:
        """Seconds per token of each sequence, behind the first one."""
        clock, began = Clock(), time.perf_counter()
        self.model.generate(
            self.ids,
            attention_mask=torch.ones_like(self.ids),
            max_new_tokens=self.new,
            min_new_tokens=self.new,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        self.first = clock.ticks[0] - began
        return clock.seconds / (self.new - 1)


def random_prompts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocabulary, (count, length), generator=generator).tolist()
