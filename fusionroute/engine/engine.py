"""The loop: schedule, one round of the method, finish. Sequences join and leave between rounds."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as ListLike

import torch
from transformers import PreTrainedTokenizerBase

from fusionroute.config import GenerationSettings
from fusionroute.engine.memory import token_limit
from fusionroute.engine.method import Method
from fusionroute.engine.prefill import Budget, chunk_for, is_writing
from fusionroute.engine.prompt_scoring import PromptScoring
from fusionroute.engine.runner import Runner
from fusionroute.engine.scheduler import Scheduler
from fusionroute.engine.sequence import Completion, Sequence
from fusionroute.errors import PromptError
from fusionroute.models.prompt import Prompt

MAX_BATCH = 64


def shared_scheduler(
    methods: Iterable[Method],
    *,
    max_batch: int = MAX_BATCH,
    cache_limit: int | str | None = None,
    prefix_reuse: bool = True,
) -> Scheduler:
    """One scheduler for engines over ``methods``, whose runners may be the same ones; see `Engine` for the arguments.

    A cache then holds the sequences of all of them, so the limit is that of all models together, and a sequence counts
    for as many rows as the neediest method's.
    """
    methods = list(methods)
    runners = list(dict.fromkeys(runner for method in methods for runner in method.runners))
    limit = token_limit(runners, cache_limit)
    for runner in runners:
        if isinstance(runner, Runner):
            runner.cache.token_limit = limit
            runner.reuse_prefixes(prefix_reuse)
    return Scheduler(max_batch, limit // max(method.rows for method in methods))


class Engine:
    """Continuous batching for any method.

    `sequence` and its checks may be called from any thread; whatever runs, queues or cancels from one alone.

    Args:
        max_batch: sequences that may run at once.
        cache_limit: bytes of key-value cache per device (``"8GiB"`` works too); None derives it from free memory.
            More requests than fit wait; one that can never fit is refused at once.
        prefix_reuse: a request that begins like another, running or of late, does not have the same tokens read again:
            each model copies what it keeps of them. What is copied was computed in passes of other shapes, so in
            bfloat16 near ties may fall otherwise than without; and whoever shares a server can tell by response times
            whether others began alike. False has every token read.
        prefill_chunk: tokens of prompts that are read between two rounds in which others write, so that a long
            prompt does not stall them; None = what suits the device. More makes the prompt's own answer begin sooner.
            `generate`, of which nobody sees a token before all have come, reads prompts whole.
        scheduler: the one of several engines, by `shared_scheduler` over all their methods, which has set
            ``max_batch``, ``cache_limit`` and ``prefix_reuse``. Any engine's `step` admits for all and writes its own
            sequences alone, so all of them have to be stepped, in turn.
    """

    def __init__(
        self,
        method: Method,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_batch: int = MAX_BATCH,
        cache_limit: int | str | None = None,
        prefix_reuse: bool = True,
        prefill_chunk: int | None = None,
        scheduler: Scheduler | None = None,
    ):
        self.method = method
        self.tokenizer = tokenizer
        self.prefill_chunk = chunk_for(method.runners[0].device, prefill_chunk)
        self._reads_in_parts = True
        if scheduler is None:
            scheduler = shared_scheduler(
                [method], max_batch=max_batch, cache_limit=cache_limit, prefix_reuse=prefix_reuse
            )
        self.scheduler = scheduler
        self._scoring = PromptScoring(method)

    def submit(self, prompt_ids: list[int], settings: GenerationSettings, prompt: Prompt | None = None) -> Sequence:
        """Queue a prompt.

        Args:
            prompt: the same before it was rendered, for models that render it in their own way.

        Raises:
            SettingsError: options that mean nothing to the method.
            PromptError: the prompt leaves no room for a token in the smallest context.
            RequestTooLargeError: it could not run even alone.
        """
        sequence = self.sequence(prompt_ids, settings, prompt)
        self.add(sequence)
        return sequence

    def add(self, sequence: Sequence) -> None:
        """Queue one that `sequence` has made. Raises `RequestTooLargeError`: it could not run even alone."""
        assert sequence.owner is self, "an engine writes the sequences that it has made"
        self.scheduler.add(sequence)

    def sequence(self, prompt_ids: list[int], settings: GenerationSettings, prompt: Prompt | None = None) -> Sequence:
        """A sequence under this engine's stop rules, not yet queued. Raises `SettingsError` and `PromptError`."""
        self.method.check(settings)
        limit = self.method.context_length
        if len(prompt_ids) >= limit:
            raise PromptError(
                f"the prompt has {len(prompt_ids)} tokens but the smallest context of the models is {limit}, "
                "and one must be left to write; shorten the prompt"
            )
        sequence = Sequence(
            prompt_ids, settings, eos_ids=self.method.eos_ids, context_length=limit, tokenizer=self.tokenizer
        )
        sequence.prompt = prompt
        sequence.owner = self
        self.method.admit(sequence)
        return sequence

    @property
    def is_idle(self) -> bool:
        """Whether no sequence of its own runs or waits."""
        return not self.running and all(sequence.owner is not self for sequence in self.scheduler.waiting)

    @property
    def running(self) -> list[Sequence]:
        """Those of the running sequences that this engine writes."""
        return [sequence for sequence in self.scheduler.running if sequence.owner is self]

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """One round for everybody who runs; returns those whose answers ended.

        Long prompts are read a bounded part at a time, before the round, and so are those whose own log-probabilities
        are asked for.
        """
        self.scheduler.admit()
        running = self.running
        watched = [each for each in self.scheduler.running if is_writing(each)]
        chunk = self.prefill_chunk if watched and self._reads_in_parts else None
        self._scoring.advance(running, chunk)
        ready = [each for each in running if not each.is_finished and each not in self._scoring]
        budget = None if chunk is None else Budget(chunk, is_alone=all(each.owner is self for each in watched))
        if writing := self.method.prepare(ready, budget):
            self.method.step(writing)
        return self._finish(running)

    def forget_prefixes(self) -> None:
        """Copy nothing from what was read until now: for whoever changes the weights of a live model."""
        for runner in self.method.runners:
            if isinstance(runner, Runner) and runner.prefixes is not None:
                runner.prefixes.forget()

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence now, whether it runs or waits; what it wrote stays."""
        if not sequence.is_finished:
            sequence.finish("cancelled")
        self._leave(sequence)

    def rollback(self, sequence: Sequence, length: int) -> None:
        """Cut a running sequence back to its first ``length`` tokens (prompt included), in every model."""
        sequence.rollback(length)
        self.method.rollback(sequence, length)

    def run(
        self, sequences: ListLike[Sequence], on_finish: Callable[[Sequence], None] | None = None
    ) -> list[Completion]:
        """Step until all of ``sequences`` have ended; completions in their order. ``on_finish`` is for progress."""
        unfinished = {sequence for sequence in sequences if not sequence.is_finished}
        while unfinished:
            for finished in self.step():
                unfinished.discard(finished)
                if on_finish is not None:
                    on_finish(finished)
        return [sequence.completion() for sequence in sequences]

    def generate(
        self,
        prompts: ListLike[list[int]],
        settings: GenerationSettings,
        on_finish: Callable[[Sequence], None] | None = None,
        unrendered: ListLike[Prompt] | None = None,
    ) -> list[Completion]:
        """Complete all prompts, in order. All are checked before the first is run.

        Args:
            unrendered: each prompt as it was before it became token ids; see `submit`.
        """
        originals = [None] * len(prompts) if unrendered is None else unrendered
        sequences = [self.sequence(ids, settings, prompt) for ids, prompt in zip(prompts, originals, strict=True)]
        for sequence in sequences:
            self.add(sequence)
        self._reads_in_parts = False  # nobody sees a token before all have come
        try:
            return self.run(sequences, on_finish)
        finally:
            self._reads_in_parts = True
            for sequence in sequences:
                self._leave(sequence)

    def stream(
        self, prompt: list[int], settings: GenerationSettings, unrendered: Prompt | None = None
    ) -> Iterator[Sequence]:
        """Yield the sequence after every round, until it has ended; leaving the loop early cancels it."""
        sequence = self.submit(prompt, settings, unrendered)
        try:
            while not sequence.is_finished:
                self.step()
                yield sequence
        finally:
            self.cancel(sequence)

    def _finish(self, running: ListLike[Sequence]) -> list[Sequence]:
        finished = [sequence for sequence in running if sequence.is_finished]
        for sequence in finished:
            self._leave(sequence)
        return finished

    def _leave(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self._scoring.forget(sequence)
        self.method.release(sequence)
