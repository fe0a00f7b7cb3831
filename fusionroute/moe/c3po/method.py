"""C3PO as a way of writing: each prompt is read under a routing of its own, which acts on its last token alone."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as ListLike
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fusionroute.engine.choice import append_tokens, choose_tokens
from fusionroute.engine.method import Method
from fusionroute.engine.runner import AnyRunner, Readable, Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.errors import ModelOutputError, SettingsError
from fusionroute.models.gates import Gates
from fusionroute.models.prompt import as_text
from fusionroute.models.team import context_length
from fusionroute.models.vocabulary import eos_ids
from fusionroute.moe.c3po.c3po import Rerouting
from fusionroute.moe.c3po.routed_runner import Route, RoutedRunner

MakeRouted = Callable[[Gates, str, Mapping[Readable, Route]], AnyRunner]


class C3PO(Method):
    """One model alone; before it answers, the routing of its prompt's last token is adapted by ``rerouting``.

    The papers do not say how generated tokens are routed. Here the model routes them itself, as it does the prompt's
    other tokens; the public code forces the same routing on every generated token.

    Args:
        name: of the model in traces and errors.
        tokenizer: turns prompts that are only known as token ids into text, for embedders that read text.
    """

    def __init__(
        self,
        rerouting: Rerouting,
        name: str,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        make_runner: MakeRouted = RoutedRunner,
    ):
        self.rerouting = rerouting
        self.tokenizer = tokenizer
        self._routes: dict[Readable, Route] = {}
        self.runner = make_runner(rerouting.gates, name, self._routes)
        self.runners = (self.runner,)
        self.eos_ids = frozenset(eos_ids(rerouting.gates.model))
        self.context_length = context_length(rerouting.gates.model)

    def step(self, sequences: ListLike[Sequence]) -> None:
        self._reroute(sequences)
        logits = self.runner.read(sequences).logits[:, -1].float()
        tokens = choose_tokens(logits, sequences)
        append_tokens(sequences, tokens, logits, experts=[self.runner.name] * len(sequences))

    @torch.inference_mode()
    def log_probabilities(self, sequences: ListLike[Sequence], last: int = 1) -> Tensor:
        """The model's own under the adapted routing after each of the ``last`` tokens; see `TeacherForced`.

        Raises:
            SettingsError: a prompt of a single token, as whole texts have that are scored in windows.
        """
        for sequence in sequences:
            if sequence.prompt_length == 1:
                raise SettingsError(
                    "C3PO adapts the routing to a question, but the prompt has a single token; score answers to "
                    "questions, or name the method single"
                )
        self._reroute(sequences)
        return self.runner.read(sequences, last).logits.float().log_softmax(-1)

    def release(self, sequence: Sequence) -> None:
        self._routes.pop(sequence, None)
        super().release(sequence)

    def _reroute(self, sequences: ListLike[Sequence]) -> None:
        """Give every sequence the route of its prompt. A cut cache needs none: it is forced when read again."""
        new = [sequence for sequence in sequences if not sequence.is_finished and not self._has_route(sequence)]
        for sequence in new:
            if (old := self._routes.pop(sequence, None)) is not None:  # another prompt: unread what was the last token
                self.runner.rollback(sequence, min(len(old.prompt), sequence.prompt_length) - 1)
        if new:
            self._adapt(new)

    def _has_route(self, sequence: Sequence) -> bool:
        route = self._routes.get(sequence)
        return route is not None and route.prompt == _prompt(sequence)

    def _adapt(self, sequences: ListLike[Sequence]) -> None:
        """All together; where the model fails, one at a time, so that only those fail on whose prompts it does."""
        prompts, before = [_prompt(sequence) for sequence in sequences], self.rerouting.cost.tokens
        try:
            routing = self.rerouting.adapt_prompts(prompts, self._texts(sequences))
        except ModelOutputError as error:
            if len(sequences) == 1:
                sequences[0].fail(f"model {self.runner.name!r}: {error}")
            for sequence in sequences if len(sequences) > 1 else ():
                self._adapt([sequence])
            return
        finally:
            if isinstance(self.runner, Runner):
                self.runner.tokens_read += self.rerouting.cost.tokens - before
        for sequence, prompt, each in zip(sequences, prompts, routing, strict=True):
            self._routes[sequence] = Route(prompt, each)

    def _texts(self, sequences: ListLike[Sequence]) -> list[str] | None:
        return [self._text(sequence) for sequence in sequences] if self.rerouting.reads_text else None

    def _text(self, sequence: Sequence) -> str:
        """The question before it was rendered, if it is known, in the words in which references were embedded."""
        prompt: Any = sequence.prompt
        if isinstance(prompt, str) or (prompt is not None and isinstance(prompt[0], Mapping)):
            return as_text(prompt)
        if self.tokenizer is None:
            raise SettingsError("the embedder reads text and the prompt is token ids; give the method a tokenizer")
        return str(self.tokenizer.decode(_prompt(sequence), skip_special_tokens=True))


def _prompt(sequence: Sequence) -> list[int]:
    return sequence.token_ids[: sequence.prompt_length]
