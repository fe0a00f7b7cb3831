"""`Team`: the models of a team, and what they do together."""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as ListLike
from typing import Any

from fusionroute import answering
from fusionroute.answering import StreamedToken
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import MAX_BATCH, Engine
from fusionroute.engine.probe import bytes_per_token
from fusionroute.engine.sequence import Completion, Sequence
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.models.prompt import Prompt
from fusionroute.models.team import TeamModels

__all__ = ["StreamedToken", "Team"]


class Team(TeamModels):
    """A router and its experts, writing one answer together; see `TeamModels` for the arguments.

    Raises, beyond `TeamModels`:
        UnsupportedModelError: a model cannot take turns, for example because its cache cannot be cut back.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for name, model in self.models.items():
            bytes_per_token(model, name)

    def engine(
        self, *, complement: bool = True, max_batch: int = MAX_BATCH, cache_limit: int | str | None = None
    ) -> Engine:
        """An engine over this team, for callers that submit and step themselves."""
        answering.check_batch(max_batch)
        method = FusionRoute(self, complement=complement)
        return Engine(method, self.tokenizer, max_batch=max_batch, cache_limit=cache_limit)

    def generate(
        self,
        prompts: ListLike[Prompt],
        *,
        complement: bool = True,
        max_batch: int = MAX_BATCH,
        cache_limit: int | str | None = None,
        on_finish: Callable[[Sequence], None] | None = None,
        **settings: Any,
    ) -> list[Completion]:
        """Complete ``prompts`` (each a string, token ids or chat messages), batched, results in their order.

        Args:
            complement: False drops the router's own log-probabilities (routing only).
            max_batch, cache_limit: see `Engine`.
            on_finish: called with each sequence as it ends.
            **settings: `GenerationSettings`: ``max_new_tokens``, ``do_sample``, ``temperature``, ``top_k``, ``top_p``,
                ``min_p``, ``presence_penalty``, ``frequency_penalty``, ``seed``, ``stop``, ``logprobs``,
                ``prompt_logprobs``, ``candidates``, ``ignore_eos``.

        Raises:
            SettingsError: an unknown option or a value out of range.
            PromptError: an empty prompt, or one that does not fit the smallest context.
            RequestTooLargeError: a request that could never fit ``cache_limit``.
        """
        parsed = GenerationSettings.parse(settings)
        answering.check_prompts(prompts)

        def engine() -> Engine:
            return self.engine(complement=complement, max_batch=max_batch, cache_limit=cache_limit)

        return answering.complete(engine, self.prompt_format, prompts, parsed, on_finish)

    def stream(
        self, prompt: Prompt, *, complement: bool = True, cache_limit: int | str | None = None, **settings: Any
    ) -> Iterator[StreamedToken]:
        """Complete one prompt, yielding each token as it is written; options and errors as in `generate`.

        Bad input is refused here, before the first token is asked for. A model that fails midway raises
        `ModelOutputError`.
        """
        parsed = GenerationSettings.parse(settings)
        engine = self.engine(complement=complement, cache_limit=cache_limit)
        return answering.stream(engine, self.prompt_format, prompt, parsed)
