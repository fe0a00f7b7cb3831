"""`Ensemble`: models with tokenizers of their own, and what they do together."""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as ListLike
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from fusionroute import answering
from fusionroute.answering import StreamedToken
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import MAX_BATCH, Engine
from fusionroute.engine.probe import bytes_per_token
from fusionroute.engine.sequence import Completion, Sequence
from fusionroute.errors import PromptError, SettingsError
from fusionroute.methods import ensemble_method
from fusionroute.models.ensemble import EnsembleOptions, EnsembleSettings, in_order, load_members, load_voices
from fusionroute.models.loading import Dtype
from fusionroute.models.member import Member
from fusionroute.models.prompt import Prompt, PromptFormat


class Ensemble:
    """Models of any families that write one answer together. Their tokenizers and prompt formats are their own.

    Args:
        members: at least two, of different names; `Member.of` makes one of a live model and its tokenizer.
        options: `EnsembleOptions`: ``drafter`` (needed), ``method``, ``host``, ``draft_length``, ``sharpening``,
            ``threshold``, ``weights``, ``gate``.

    Raises:
        SettingsError: an option that is unknown or out of range, a drafter or weight of no member, members of one name.
        UnsupportedModelError: a model cannot take turns, for example because its cache cannot be cut back.
    """

    def __init__(self, members: ListLike[Member], **options: Any):
        by_name = {member.name: member for member in members}
        if len(by_name) < max(2, len(members)):
            names = ", ".join(member.name for member in members) or "none"
            raise SettingsError(f"an ensemble has at least two members, each with a name of its own; got {names}")
        self.options = EnsembleOptions.parse(options)
        if problem := self.options.problem(by_name):
            raise SettingsError(problem)
        drafter = self.options.require_drafter(by_name)
        self.members = tuple(by_name[name] for name in in_order(by_name, drafter))
        for member in self.members:
            bytes_per_token(member.model, member.name)
        self.method()  # what does not fit together is told now

    @property
    def drafter(self) -> Member:
        """Whose tokens the answer's are."""
        return self.members[0]

    @property
    def expert_names(self) -> tuple[str, ...]:
        """Who may stand in the trace, the drafter first."""
        return tuple(member.name for member in self.members)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The drafter's."""
        return self.drafter.pieces.tokenizer

    @property
    def prompt_format(self) -> PromptFormat:
        """The drafter's."""
        return self.drafter.prompt

    @property
    def prompt(self) -> str | None:
        """The name of the prompt format; with ``chat_template`` each member reads its own."""
        return self.drafter.prompt.name

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        changes: Mapping[str, Any] | None = None,
        dtype: Dtype = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """Load an ensemble file. What can be told without weights is told before they are read.

        Args:
            changes: options of the file that are to be others here, such as ``{"draft_length": 3, "weights.qwen": 2}``.
            dtype: for every model that names none of its own; it comes before the file's.
            device: likewise.
            trust_remote_code: of every model; the file may allow it for some.

        Raises:
            SettingsError: what is wrong in the file or in ``changes``.
            CheckpointError: a model is missing, half-written or corrupt.
            VocabularyError: a tokenizer that cannot be aligned with others, or a model without end of sequence.
        """
        settings = EnsembleSettings.read(path, changes)
        settings.require_drafter(settings.models)
        trusted = {"trust_remote_code": True} if trust_remote_code else {}
        models = {name: reference.model_copy(update=trusted) for name, reference in settings.models.items()}
        members = load_members(
            models,
            load_voices(models, settings.prompt),
            dtype=dtype or settings.dtype,
            device=device or settings.device,
        )
        return cls(members, **_options(settings))

    def method(self) -> Any:
        """A method over the members with caches of its own."""
        return ensemble_method(self.members, self.options)

    def engine(self, *, max_batch: int = MAX_BATCH, cache_limit: int | str | None = None) -> Engine:
        """An engine over this ensemble, for callers that submit and step themselves.

        They give each prompt twice: as the drafter's token ids, and unrendered for the others.
        """
        answering.check_batch(max_batch)
        return Engine(self.method(), self.tokenizer, max_batch=max_batch, cache_limit=cache_limit)

    def generate(
        self,
        prompts: ListLike[Prompt],
        *,
        max_batch: int = MAX_BATCH,
        cache_limit: int | str | None = None,
        on_finish: Callable[[Sequence], None] | None = None,
        **settings: Any,
    ) -> list[Completion]:
        """Complete ``prompts`` (each a string or chat messages), batched, results in their order.

        Arguments and errors as in `Team.generate`, and

        Raises:
            PromptError: a prompt of token ids, which speaks to one tokenizer alone.
        """
        parsed = GenerationSettings.parse(settings)
        answering.check_prompts(prompts)
        for prompt in prompts:
            _refuse_ids(prompt)

        def engine() -> Engine:
            return self.engine(max_batch=max_batch, cache_limit=cache_limit)

        return answering.complete(engine, self.prompt_format, prompts, parsed, on_finish)

    def stream(
        self, prompt: Prompt, *, cache_limit: int | str | None = None, **settings: Any
    ) -> Iterator[StreamedToken]:
        """Complete one prompt, yielding each token as it is written; several may come at once.

        Options and errors as in `generate`. Bad input is refused here, before the first token is asked for. A model
        that fails midway raises `ModelOutputError`.
        """
        parsed = GenerationSettings.parse(settings)
        _refuse_ids(prompt)
        return answering.stream(self.engine(cache_limit=cache_limit), self.prompt_format, prompt, parsed)


def _options(settings: EnsembleSettings) -> Mapping[str, Any]:
    """What the file says of `EnsembleOptions`; what it leaves out stays left out."""
    return settings.model_dump(include=set(EnsembleOptions.model_fields), exclude_unset=True)


def _refuse_ids(prompt: Prompt) -> None:
    if isinstance(prompt, ListLike) and not isinstance(prompt, str) and prompt and not isinstance(prompt[0], Mapping):
        raise PromptError(
            "a prompt of token ids speaks to one tokenizer alone; give an ensemble text or chat messages, which each "
            "of its models reads in its own way"
        )
