"""One answer in the making: prompt, tokens so far, stop rules, trace. Everything else is derived."""

import random
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from fusionroute.config import GenerationSettings
from fusionroute.engine.text import GrowingText
from fusionroute.models.prompt import Prompt

DECIDED_BY = ("both", "expert", "router", "neither")  # the codes of ops.agreement.decided_by
VERDICTS = {
    "consensus": "kept: every verifier's first choice is its own token here",
    "majority": "kept: together the models give their tokens here more than one half",
    "gate": "kept: the drafter alone is sure enough",
    "boundary": "kept: the token before it ends where some verifier has no token boundary",
    "alone": "kept: a special token, the inside of a character, or nobody to ask",
    "accepted": "kept: drawn by the drafter, accepted by the ensemble",
    "ensembled": "ensembled: the ensemble chose the drafter's own token",
    "replaced": "ensembled: the ensemble chose another token than the drafter",
    "continued": "a further token of what the ensemble chose",
}
Likeliest = tuple[tuple[int, float], ...]  # token ids with their log-probabilities, best first
PromptLogprob = tuple[int, float | None, Likeliest]  # a token of the prompt, its log-probability, what was likeliest
ENSEMBLED = ("ensembled", "replaced")  # one of them for every time that an ensemble was asked


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """Who wrote one token.

    Attributes:
        expert: the expert that was asked, or the model's own name where one model writes alone.
        weights: the routing weight of each expert, in the team's order; empty where nothing routes.
        decided_by: whose own first choice the token was: "both", "expert", "router" or "neither".
        logprob: log-probability of the token before temperature and filters, if log-probabilities were asked for.
        top_logprobs: the likeliest tokens and theirs, best first.
        verdict: where models check each other's tokens, what came of it (a key of `VERDICTS`); else empty.
        support: where they do, each model's probability, the drafter's first: of its own token where a draft is
            checked, of what is written where all are asked for every token.
        candidates: if asked for, the likeliest tokens of each distribution that took part, by the name of whose it is;
            "fused" is the one that was written from where several were put together.
    """

    token_id: int
    expert: str
    weights: tuple[float, ...] = ()
    decided_by: str = "expert"
    logprob: float | None = None
    top_logprobs: Likeliest = ()
    verdict: str = ""
    support: tuple[float, ...] = ()
    candidates: tuple[tuple[str, Likeliest], ...] = ()


@dataclass(frozen=True)
class Completion:
    """A finished answer.

    Attributes:
        text: without special tokens and, if one was met, without the stop string and what follows it.
        token_ids: every generated token, the end-of-sequence token included.
        finish_reason: "stop" (end of sequence or a stop string), "length", "cancelled" or "error".
        trace: one record per token.
        error: what went wrong, naming the model, if ``finish_reason`` is "error".
        prompt_logprobs: if asked for, one for each token of the prompt; nothing stands before the first.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    trace: list[TraceRecord] = field(repr=False)
    error: str | None = None
    prompt_logprobs: list[PromptLogprob] | None = field(default=None, repr=False)


class Sequence:
    """A prompt and what has been written after it.

    Args:
        prompt_ids: at least one token.
        eos_ids: tokens that end the answer.
        context_length: positions that the smallest model can hold.
        tokenizer: None leaves `text` empty; stop strings need one.

    Attributes:
        prompt: before it was rendered, if whoever judges the answer is to know it.
        owner: the engine that writes it, where several share a scheduler.
        prompt_logprobs: filled before the first token is written, if the settings ask for them.
    """

    def __init__(
        self,
        prompt_ids: list[int],
        settings: GenerationSettings,
        *,
        eos_ids: frozenset[int] = frozenset(),
        context_length: int = 2**62,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        assert prompt_ids, "prompts are checked before they get here"
        assert tokenizer is not None or not settings.stop, "stop strings need a tokenizer"
        self.settings = settings
        self.token_ids = list(prompt_ids)
        self.prompt_length = len(prompt_ids)
        self.max_length = min(self.prompt_length + settings.max_new_tokens, context_length)
        self.eos_ids = frozenset() if settings.ignore_eos else eos_ids
        self.tokenizer = tokenizer
        self.prompt: Prompt | None = None
        self.owner: object = None
        self.prompt_logprobs: list[PromptLogprob] | None = None
        # drawn once, so that an unseeded answer too draws the same numbers again after a rollback
        self.seed = random.getrandbits(63) if settings.seed is None else settings.seed
        self.trace: list[TraceRecord] = []
        self.finish_reason: str | None = None
        self.error: str | None = None
        self._text = self._new_text()

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.prompt_length :]

    @property
    def position(self) -> int:
        """Number of tokens written so far; the counter of the sequence's random numbers."""
        return len(self.token_ids) - self.prompt_length

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def text(self) -> str:
        return self._text.text if self._text else ""

    @property
    def settled_text(self) -> str:
        """The part of `text` that later tokens cannot change; what a stream may show."""
        if self._text is None:
            return ""
        return self._text.text if self.is_finished else self._text.text[: self._text.settled]

    def append(self, record: TraceRecord) -> None:
        """Add one token and apply the stop rules. Ignored once the sequence is finished or has failed."""
        if self.is_finished:
            return
        self.token_ids.append(record.token_id)
        self.trace.append(record)
        if self._text is not None:
            self._text.push(record.token_id)
        if record.token_id in self.eos_ids or (self._text is not None and self._text.is_stopped):
            self.finish("stop")
        elif len(self.token_ids) >= self.max_length:
            self.finish("length")

    def finish(self, reason: str) -> None:
        self.finish_reason = reason
        if self._text is not None:
            self._text.finish()
            if self._text.is_stopped and reason == "length":
                self.finish_reason = "stop"

    def fail(self, message: str) -> None:
        """End this sequence alone because a model failed on it."""
        if not self.is_finished:
            self.error = message
            self.finish("error")

    def rollback(self, length: int) -> None:
        """Forget all tokens from ``length`` (prompt included) on, and that the answer had ended."""
        assert self.prompt_length <= length <= len(self.token_ids)
        del self.token_ids[length:]
        del self.trace[length - self.prompt_length :]
        self.finish_reason = self.error = None
        self._text = self._new_text()
        if self._text is not None:
            for token_id in self.output_ids:
                self._text.push(token_id)

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        return Completion(
            self.text, self.output_ids, self.finish_reason, list(self.trace), self.error, self.prompt_logprobs
        )

    def _new_text(self) -> GrowingText | None:
        return GrowingText(self.tokenizer, self.settings.stop) if self.tokenizer is not None else None
