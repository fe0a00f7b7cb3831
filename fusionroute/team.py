"""`Team`: the models of a team, and what they do together."""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as ListLike
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusionroute import answering
from fusionroute.answering import StreamedToken
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import MAX_BATCH, Engine
from fusionroute.engine.method import MakeRunner
from fusionroute.engine.probe import bytes_per_token
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Completion, Sequence
from fusionroute.engine.speculation import Pace, SpeculationSettings, about_draft_model, new_pace
from fusionroute.errors import VocabularyError
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.models.loading import ModelReference, load_model, load_tokenizer
from fusionroute.models.prompt import Prompt
from fusionroute.models.router import Router
from fusionroute.models.team import TeamModels
from fusionroute.models.vocabulary import check_tokenizers

Speculating = str | Mapping[str, Any] | SpeculationSettings | None

__all__ = ["StreamedToken", "Team"]


class Team(TeamModels):
    """A router and its experts, writing one answer together (Eq. 1).

    Args:
        router: its route head has one output per expert, in the order of ``experts``.
        experts: name to causal LM; frozen, each on whatever device it is on.
        tokenizer: the one tokenizer of all of them.
        prompt: None takes prompts as they are; else ``"chat_template"`` or a named template such as ``"alpaca"``.
        references: where each expert came from, for saving; experts not named here are known by where they say they
            were loaded from.

    Raises:
        SettingsError: names that clash, or a router made for another number of experts.
        VocabularyError: models that do not share one vocabulary.
        UnsupportedModelError: a model cannot take turns, for example because its cache cannot be cut back.
    """

    def __init__(
        self,
        router: Router,
        experts: Mapping[str, PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        prompt: str | None = None,
        *,
        references: Mapping[str, ModelReference] | None = None,
    ):
        super().__init__(router, experts, tokenizer, prompt, references=references)
        for name, model in self.models.items():
            bytes_per_token(model, name)
        self._paces: dict[tuple[SpeculationSettings, bool], Pace] = {}  # by whether the complement counts, too
        self._draft_models: dict[ModelReference, PreTrainedModel] = {}

    def engine(
        self,
        *,
        complement: bool = True,
        speculation: Speculating = None,
        max_batch: int = MAX_BATCH,
        cache_limit: int | str | None = None,
        prefix_reuse: bool = True,
        prefill_chunk: int | None = None,
    ) -> Engine:
        """An engine over this team, for callers that submit and step themselves; options as in `generate`.

        Args:
            prefix_reuse: see `Engine`.
            prefill_chunk: see `Engine`.
        """
        answering.check_batch(max_batch)
        return Engine(
            self.method(complement=complement, speculation=speculation),
            self.tokenizer,
            max_batch=max_batch,
            cache_limit=cache_limit,
            prefix_reuse=prefix_reuse,
            prefill_chunk=prefill_chunk,
        )

    def method(
        self, *, complement: bool = True, speculation: Speculating = None, make_runner: MakeRunner = Runner
    ) -> FusionRoute:
        """FusionRoute with these models. What one learns of how drafts fare, the next one of equal settings knows.

        Raises:
            SettingsError, CheckpointError, VocabularyError: as in `generate`.
        """
        settings = SpeculationSettings.of(speculation)
        if settings is None:
            return FusionRoute(self, complement=complement, make_runner=make_runner)
        return FusionRoute(
            self,
            complement=complement,
            speculation=settings,
            draft_model=None if settings.model is None else self._draft_model(settings.model),
            pace=self._paces.setdefault((settings, complement), new_pace(settings)),
            make_runner=make_runner,
        )

    def generate(
        self,
        prompts: ListLike[Prompt],
        *,
        complement: bool = True,
        speculation: Speculating = None,
        max_batch: int = MAX_BATCH,
        cache_limit: int | str | None = None,
        on_finish: Callable[[Sequence], None] | None = None,
        **settings: Any,
    ) -> list[Completion]:
        """Complete ``prompts`` (each a string, token ids or chat messages), batched, results in their order.

        Args:
            complement: False drops the router's own log-probabilities (routing only).
            speculation: draft tokens and let one pass of each model check several: the same answers, sooner. A
                drafter's name (``"router"``, ``"ngram"``), a small model's folder or hub id, or `SpeculationSettings`,
                also as a mapping; None asks for one token at a time.
            max_batch: see `Engine`.
            cache_limit: see `Engine`.
            on_finish: called with each sequence as it ends.
            **settings: `GenerationSettings`: ``max_new_tokens``, ``do_sample``, ``temperature``, ``top_k``, ``top_p``,
                ``min_p``, ``presence_penalty``, ``frequency_penalty``, ``seed``, ``stop``, ``logprobs``,
                ``prompt_logprobs``, ``candidates``, ``ignore_eos``.

        Raises:
            SettingsError: an unknown option or a value out of range.
            PromptError: an empty prompt, or one that does not fit the smallest context.
            CheckpointError, VocabularyError, UnsupportedModelError: a draft model that cannot be loaded, has another
                vocabulary, or cannot be cut back.
            RequestTooLargeError: a request that could never fit ``cache_limit``.
        """
        parsed = GenerationSettings.parse(settings)
        answering.check_prompts(prompts)

        def engine() -> Engine:
            return self.engine(
                complement=complement, speculation=speculation, max_batch=max_batch, cache_limit=cache_limit
            )

        return answering.complete(engine, self.prompt_format, prompts, parsed, on_finish)

    def stream(
        self,
        prompt: Prompt,
        *,
        complement: bool = True,
        speculation: Speculating = None,
        cache_limit: int | str | None = None,
        **settings: Any,
    ) -> Iterator[StreamedToken]:
        """Complete one prompt, yielding each token as it is written; options and errors as in `generate`.

        Bad input is refused here, before the first token is asked for. A model that fails midway raises
        `ModelOutputError`.
        """
        parsed = GenerationSettings.parse(settings)
        engine = self.engine(complement=complement, speculation=speculation, cache_limit=cache_limit)
        return answering.stream(engine, self.prompt_format, prompt, parsed)

    def _draft_model(self, reference: ModelReference) -> PreTrainedModel:
        """Loaded once, on the router's device and in its dtype unless the reference says otherwise.

        Its own vocabulary may be padded to another size: ids that stand for no token are neither drafted nor read.
        """
        if reference not in self._draft_models:
            with about_draft_model():
                tokenizer = load_tokenizer(reference)
                self._check_drafting(tokenizer, reference.model)
                model = load_model(reference, dtype=self.router.dtype, device=self.router.device)
                bytes_per_token(model, reference.model)
            self._draft_models[reference] = model
        return self._draft_models[reference]

    def _check_drafting(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        """Insist on the same tokens by the same ids. Raises `VocabularyError`."""
        try:
            check_tokenizers(self.tokenizer, {name: tokenizer})
        except VocabularyError as error:
            raise VocabularyError(str(error).replace(f"expert {name!r}", repr(name))) from None
