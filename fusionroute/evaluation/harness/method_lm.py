"""Any method as a model of lm-eval: its tasks and metrics, our engine."""

import hashlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, warning_once
from transformers import PreTrainedTokenizerBase

from fusionroute.engine.engine import MAX_BATCH, Engine
from fusionroute.engine.members import OfMembers
from fusionroute.engine.method import Method
from fusionroute.engine.sequence import Completion
from fusionroute.engine.sequence import Sequence as Written
from fusionroute.errors import ModelOutputError, PromptError, SettingsError
from fusionroute.evaluation.harness.answer_log import AnswerLog
from fusionroute.evaluation.harness.decoding import Decoding, parse_decoding
from fusionroute.evaluation.harness.likelihoods import Likelihoods, Limits, Request, Score
from fusionroute.evaluation.harness.processors import warn_of_processors
from fusionroute.evaluation.harness.shared_context import Asked, check_context
from fusionroute.models.opening import is_opened
from fusionroute.models.prompt import TEMPLATES, PromptFormat

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 256  # where a task says nothing; as in lm-eval's hf model


class MethodLM(TemplateLM):
    """A method as lm-eval's ``LM``; of one model alone it gives what lm-eval's own ``hf`` model gives.

    One difference: what a checkpoint's ``generation_config`` changes beside sampling (``repetition_penalty``,
    ``no_repeat_ngram_size``, …; see `processors`) acts in ``hf``, on greedy decoding too, and not here, where a fused
    distribution is no single model's. A warning names the model and the setting.

    A context is taken as it is, with the BOS that the tokenizer adds unless it begins with one, until lm-eval is asked
    to apply a chat template (``apply_chat_template=True``): then ``prompt`` renders it. Models with tokenizers of their
    own get the messages, the beginning of an answer too, and each reads them in its own format.

    Args:
        method: what writes; likelihoods need one that is `TeacherForced`.
        prompt: the format its models were trained with. None is the tokenizer's own chat template.
        max_batch: see `Engine`.
        cache_limit: see `Engine`.
        seed: of sampled answers, from which each request and each of its repeats gets its own.
        max_new_tokens: where a task does not say.
        max_length: read no more tokens than this, where that is less than the context.
        on_finish: called with the number of requests that were answered, as they are.
        log: answers that it has are not written again, and new ones are added.

    Attributes:
        written: for each context what was written, in the order of the requests.
        tokens_written, seconds: of all answers, and spent on them.
    """

    def __init__(
        self,
        method: Method,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt: PromptFormat | None = None,
        max_batch: int = MAX_BATCH,
        cache_limit: int | str | None = None,
        seed: int = 0,
        max_new_tokens: int = MAX_NEW_TOKENS,
        max_length: int | None = None,
        on_finish: Callable[[int], None] | None = None,
        log: AnswerLog | None = None,
    ):
        super().__init__()
        for name, value in {"max_batch": max_batch, "max_new_tokens": max_new_tokens, "max_length": max_length}.items():
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1; got {value}")
        if tokenizer.eos_token_id is None:
            raise SettingsError("the tokenizer has no end-of-sequence token, which lm-eval needs; set its eos_token")
        self.method = method
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.seed = seed
        self.max_new_tokens = max_new_tokens
        self.max_length = min(method.context_length, max_length or method.context_length)
        self.on_finish = on_finish or (lambda count: None)
        self.log = log
        self.engine = Engine(method, tokenizer, max_batch=max_batch, cache_limit=cache_limit)
        self.written: dict[str, list[Completion]] = defaultdict(list)
        self.tokens_written = 0
        self.seconds = 0.0
        self._device = method.runners[0].device
        self._members = method.members if isinstance(method, OfMembers) else ()  # with prompt formats of their own
        self._smallest_context = min([self.max_length, *(member.context_length for member in self._members)])
        self._adds_bos = not _is_trained_without_bos(prompt)
        self._has_rendered = self._has_warned = False
        self._messages: dict[str, list[dict[str, str]]] = {}  # of which a rendered context was made

    # prompts

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What an empty context becomes: BOS, or the end of sequence where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of rendered requests, so the template is part of it."""
        named = f"__{self.prompt.name}" if self.prompt and self._template else ""
        return str(self.tokenizer.name_or_path).replace("/", "__") + named

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids. BOS is added as the tokenizer does, but never twice, nor if the models were trained without."""
        if add_special_tokens is None:
            begins = string.startswith(str(self.tokenizer.decode([self.prefix_token_id])))
            add_special_tokens = self._adds_bos and not begins
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as one text. A template that knows no system role gets the messages without it, as in ``hf``.

        Of several models all get them without, if the template of one refuses it: they are to be asked the same.
        """
        self._has_rendered = True
        messages = self._without_refused(chat_history, add_generation_prompt)
        text = self._render(messages, add_generation_prompt)
        if self._members or messages[-1]["role"] != "assistant":
            self._messages[text] = messages
        return text

    def _without_refused(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> list[dict[str, str]]:
        rest = [message for message in messages if message["role"] != "system"]
        if len(rest) == len(messages):
            return messages
        asked = messages[:-1] if is_opened(messages) else messages
        if refusing := [member.name for member in self._members if member.prompt.refuses(asked)]:
            of = f"the chat template of {', '.join(map(repr, refusing))}"
            warning_once(logger, f"{of} refuses the system message; it is left out for all models of the ensemble")
            return rest
        try:
            self._render(messages, add_generation_prompt)
        except jinja2.TemplateError:
            warning_once(logger, "the chat template refuses the system message; it is left out")
            return rest
        return messages

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that `apply_chat_template` uses; lm-eval writes it into its results.

        Raises:
            SettingsError: a template is asked for by a name that is not the format's.
        """
        if not chat_template:
            return None
        if isinstance(chat_template, str) and chat_template != (self.prompt.name if self.prompt else None):
            raise SettingsError(
                f"the chat template {chat_template!r} cannot be chosen here; give prompt={chat_template} with the "
                "model, and apply_chat_template=True"
            )
        return self._template or super().chat_template(True)

    @property
    def _template(self) -> str | None:
        """The named template of the format; None where the tokenizer's own is used."""
        return TEMPLATES.get(self.prompt.name or "") if self.prompt else None

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        if not self._template and not self.tokenizer.chat_template:
            raise SettingsError(
                "the tokenizer has no chat template; name one (prompt=alpaca), or do without apply_chat_template"
            )
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    # answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Write all answers, batched continuously; those of equal requests (repeats) are drawn independently.

        A context that leaves no room for the answer loses its beginning. Where models read it in several ways it is
        refused instead, if for any of them; a warning counts answers that outgrow the context of one that reads along.

        Raises:
            SettingsError: a generation option that is unknown or out of range, or no room for any context.
            PromptError: a context that some model of an ensemble cannot read.
            ModelOutputError: a model returned logits that are no distribution; no score is made of such an answer.
        """
        self._warn_of_bare_contexts()
        warn_of_processors(self.method)
        decodings = {repr(options): self._decoding(options) for _, options in (request.args for request in requests)}
        asked = [(context, options, decodings[repr(options)]) for context, options in (each.args for each in requests)]
        sequences = self._sequences([(context, decoding) for context, _, decoding in asked])
        keys = [_key(context, options, each) for (context, options, _), each in zip(asked, sequences, strict=True)]
        known = self.log.known if self.log else {}
        missing = [at for at, key in enumerate(keys) if key not in known]
        if len(missing) < len(keys):
            self.on_finish(len(keys) - len(missing))
        place = {sequences[at]: at for at in missing}

        def finished(sequence: Written) -> None:
            context, options, decoding = asked[place[sequence]]
            if sequence.error is None and decoding.settings.is_greedy:
                answer = decoding.text(self.tokenizer, sequence.output_ids)
                self.cache_hook.add_partial("generate_until", (context, options), answer)
            if sequence.error is None and self.log is not None:
                self.log.add(keys[place[sequence]], sequence.completion())
            self.on_finish(1)

        new = dict(zip(missing, self._run([sequences[at] for at in missing], finished), strict=True))
        completions = [new[at] if at in new else known[key] for at, key in enumerate(keys)]
        self._warn_of_outgrown_contexts(completions, [decoding for _, _, decoding in asked])
        for (context, _, _), completion in zip(asked, completions, strict=True):
            self.written[context].append(completion)
        return [
            decoding.text(self.tokenizer, completion.token_ids)
            for (_, _, decoding), completion in zip(asked, completions, strict=True)
        ]

    def _decoding(self, options: dict[str, Any]) -> Decoding:
        decoding = parse_decoding(options, self.tokenizer, self.max_new_tokens)
        if decoding.settings.max_new_tokens >= self._smallest_context:
            raise SettingsError(
                f"max_gen_toks={decoding.settings.max_new_tokens} leaves no room for a prompt: the smallest context of "
                f"the models is {self._smallest_context}; lower it (gen_kwargs max_gen_toks=…)"
            )
        return decoding

    def _sequences(self, asked: Sequence[tuple[str, Decoding]]) -> list[Written]:
        repeats: Counter[tuple[str, Decoding]] = Counter()
        sequences, cut = [], 0
        for context, decoding in asked:
            seed = derived_seed(self.seed, context, repeats[context, decoding])
            repeats[context, decoding] += 1
            ids = self._prompt_ids(context)
            room = self.max_length - decoding.settings.max_new_tokens
            cut += len(ids) > room
            if self._members:
                asked_of = Asked(context, self._messages.get(context), ids, decoding.settings.max_new_tokens)
                check_context(self._members, asked_of, self.max_length)
            settings = decoding.settings.model_copy(update={"seed": seed})
            sequence = self.engine.sequence(ids[-room:], settings, self._messages.get(context, context))
            sequence.eos_ids |= decoding.end_ids
            sequences.append(sequence)
        if cut:
            logger.warning("%d of %d contexts are too long and lose their beginning", cut, len(asked))
        return sequences

    def _prompt_ids(self, context: str) -> list[int]:
        """As the first model reads it. Of an ensemble all read the messages alike, in which no spelling is a token."""
        if self._members and context in self._messages:
            return self._members[0].prompt.encode(self._messages[context])
        return self.tok_encode(context) or [self.prefix_token_id]

    def _run(self, sequences: list[Written], on_finish: Callable[[Written], None]) -> list[Completion]:
        began = time.perf_counter()
        try:
            for sequence in sorted(sequences, key=lambda each: each.max_length, reverse=True):
                self.engine.scheduler.add(sequence)
            completions = self.engine.run(sequences, on_finish)
        finally:
            for sequence in sequences:
                self.engine.cancel(sequence)
            self.seconds += time.perf_counter() - began
            self.tokens_written += sum(sequence.position for sequence in sequences)
        errors = [completion.error for completion in completions if completion.error is not None]
        if errors:
            raise ModelOutputError(f"{len(errors)} of {len(completions)} answers failed; the first: {errors[0]}")
        return completions

    # likelihoods

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Score]:
        """How likely each continuation is after its context, and whether greedy decoding would write it.

        Raises as `loglikelihood_rolling` does.
        """
        self._warn_of_bare_contexts()
        for request in requests:
            if request.args[1] == "":
                raise PromptError(f"the context {request.args[0][-40:]!r} has an empty continuation to score")
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """How likely each text is as a whole; a long one is read in windows, each token predicted once.

        Raises:
            SettingsError: a method without `TeacherForced`; see `Likelihoods`.
            PromptError, RequestTooLargeError, ModelOutputError: see `Likelihoods.score`.
        """
        texts = [request.args[0] for request in requests]
        windows = [(at, window) for at, text in enumerate(texts) for window in self._windows(text)]
        totals, missing = [0.0] * len(texts), Counter(at for at, _ in windows)

        def scored(number: int, score: Score) -> None:
            at = windows[number][0]
            missing[at] -= 1
            if missing[at] == 0:
                self.on_finish(1)

        scores = self._likelihoods().score([window for _, window in windows], scored)
        for (at, _), (value, _) in zip(windows, scores, strict=True):
            totals[at] += value
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[Score]:
        def scored(at: int, score: Score) -> None:
            self.cache_hook.add_partial("loglikelihood", requests[at][0], score)
            self.on_finish(1)

        return self._likelihoods().score([(before, after) for _, before, after in requests], scored)

    def _windows(self, text: str) -> list[Request]:
        rolling = get_rolling_token_windows(
            self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        return [make_disjoint_window(window) for window in rolling]

    def _likelihoods(self) -> Likelihoods:
        scheduler = self.engine.scheduler
        limits = Limits(self.max_length, scheduler.max_batch, scheduler.token_limit, vocabulary=len(self.tokenizer))
        return Likelihoods(self.method, limits)

    def _warn_of_bare_contexts(self) -> None:
        """Instruction models do poorly on text that is not in their format, and a benchmark would not say why."""
        has_format = self.prompt is not None and self.prompt.name is not None
        if has_format and not self._has_rendered and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the models expect prompts in the format %r but get text as it is; apply_chat_template=True (on the "
                "command line --apply_chat_template) applies it",
                self.prompt and self.prompt.name,
            )

    def _warn_of_outgrown_contexts(self, completions: Sequence[Completion], decodings: Sequence[Decoding]) -> None:
        """There was room for the answers in the drafter's tokens; the same text may be more tokens of another model."""
        ended = sum(
            completion.finish_reason == "length" and len(completion.token_ids) < decoding.settings.max_new_tokens
            for completion, decoding in zip(completions, decodings, strict=True)
        )
        if self._members and ended:
            contexts = ", ".join(f"{member.name!r}: {member.context_length}" for member in self._members[1:])
            logger.warning(
                "%d of %d answers end early, because their text fills the context of a model that reads along (%s); "
                "ask for fewer new tokens or shots, or leave that model out",
                ended,
                len(completions),
                contexts,
            )


def derived_seed(seed: int, context: str, repeat: int) -> int:
    """The seed of one answer: the same in any batch and any order, another for each context and each repeat."""
    digest = hashlib.sha256(f"{seed}\0{repeat}\0{context}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _key(context: str, options: dict[str, Any], sequence: Written) -> str:
    """Names a request and its repeat, which is in the seed, for an `AnswerLog`."""
    return hashlib.sha256(f"{sequence.seed}\0{sorted(options.items())!r}\0{context}".encode()).hexdigest()


def _is_trained_without_bos(prompt: PromptFormat | None) -> bool:
    """The format leaves out a BOS that the tokenizer would add, as a chat template that writes none does."""
    if prompt is None or prompt.name is None or prompt.tokenizer.bos_token_id is None:
        return False
    bos = prompt.tokenizer.bos_token_id
    return bos in prompt.tokenizer.encode("a") and bos not in prompt.encode("a")
