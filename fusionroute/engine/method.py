"""The contract between the engine and a way of writing together."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as ListLike
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from fusionroute.config import GenerationSettings
from fusionroute.engine.prefill import Asked, Budget, read_in_parts
from fusionroute.engine.runner import AnyRunner, Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.errors import SettingsError
from fusionroute.models.team import context_length
from fusionroute.models.vocabulary import check_models, eos_ids

NEED_ONE_DISTRIBUTION = {"presence_penalty": 0, "frequency_penalty": 0, "candidates": None}  # settings, and when off

MakeRunner = Callable[[Any, str], AnyRunner]  # (model, name) to a runner; `Runner` itself is one


class Method(Protocol):
    """One round for all running sequences. Ways of writing inherit from it, for what it says by default.

    Attributes:
        runners: every model the method asks; the engine gives their caches their share of memory.
        eos_ids: tokens that end an answer.
        context_length: positions that the smallest model can hold.
        rows: cache rows that one sequence takes in each model, at most.
        draws_from_one: each token is chosen by `choice.choose_tokens` from one distribution over one vocabulary, so
            penalties and candidates mean something.
        scores_prompts: it is `TeacherForced` and says of a prompt cut short what it says inside the whole one.
    """

    runners: ListLike[AnyRunner]
    eos_ids: frozenset[int]
    context_length: int
    rows: int = 1
    draws_from_one: bool = True
    scores_prompts: bool = False

    def step(self, sequences: ListLike[Sequence]) -> None:
        """Append at least one token to every sequence, through `choice.append_tokens`.

        The engine gives it those that `prepare` let through in the same round. A sequence may still sit a round out if
        only now a model turns out to be needed that has much to read of it, as long as others write; a part of that
        is then read at once, and `asked` names that model until the sequence is written.
        """
        ...

    def prepare(self, sequences: ListLike[Sequence], budget: Budget | None) -> list[Sequence]:
        """Those who may write this round; the others have read a part of what they have to before they can.

        Args:
            sequences: in order of arrival, none of them finished.
            budget: what each model may read in this round, here and in `step`; None = as much as there is.
        """
        return read_in_parts({sequence: self.asked(sequence) for sequence in sequences}, budget)

    def asked(self, sequence: Sequence) -> Asked:
        """Models that will surely be asked for the next token of this sequence, each with the handle it reads.

        They read a long prompt in parts while others write. Models left out read it at once when they are asked.
        """
        return [(runner, sequence) for runner in self.runners]

    def check(self, settings: GenerationSettings) -> None:
        """Raise `SettingsError` for settings that mean nothing here; asked before a sequence is queued."""
        for name, neutral in () if self.draws_from_one else NEED_ONE_DISTRIBUTION.items():
            if getattr(settings, name) != neutral:
                raise SettingsError(
                    f"{type(self).__name__} does not choose each token from one distribution over one vocabulary, so "
                    f"{name}={getattr(settings, name)} means nothing; drop it"
                )
        if settings.prompt_logprobs is not None and not self.scores_prompts:
            raise SettingsError(
                f"{type(self).__name__} cannot say how likely the tokens of a prompt are; drop prompt_logprobs="
                f"{settings.prompt_logprobs}"
            )

    def admit(self, sequence: Sequence) -> None:
        """Raise `PromptError` for a sequence that cannot be written here; asked before it is queued."""
        return

    def rollback(self, sequence: Sequence, length: int) -> None:
        """The sequence was cut back to its first ``length`` tokens: so is what the models keep of it."""
        for runner in self.runners:
            runner.rollback(sequence, length)

    def release(self, sequence: Sequence) -> None:
        """The sequence has left: free whatever the method and its models keep of it."""
        for runner in self.runners:
            runner.release(sequence)


@runtime_checkable
class TeacherForced(Protocol):
    """A method whose next-token distribution needs no more than the tokens before it."""

    def log_probabilities(self, sequences: ListLike[Sequence], last: int = 1) -> Tensor:
        """What it would write from after each of the ``last`` tokens of every sequence, before temperature and filters.

        Returns:
            normalised float32 log-probabilities ``[sequences, last, vocabulary]``; at ``[i, j]`` those after the first
            ``len(sequences[i]) - last + 1 + j`` tokens of sequence i, as in `Runner.read`.
        """
        ...


class OfExperts(Method):
    """A method over experts of one vocabulary, without a router. Whatever ends an answer for any of them ends it.

    Raises:
        SettingsError: no experts.
        VocabularyError: experts of different vocabularies.
    """

    def __init__(self, experts: Mapping[str, Any], make_runner: MakeRunner = Runner):
        check_vocabulary(experts)
        self.experts = tuple(make_runner(model, name) for name, model in experts.items())
        self.runners: ListLike[AnyRunner] = self.experts
        self.eos_ids = frozenset().union(*(eos_ids(model) for model in experts.values()))
        self.context_length = min(context_length(model) for model in experts.values())


class GreedyOnly(OfExperts):
    """A method whose experts write greedily and are judged afterwards, so that there is nothing to draw from."""

    draws_from_one = False

    def check(self, settings: GenerationSettings) -> None:
        super().check(settings)
        if not settings.is_greedy:
            raise SettingsError(
                f"{type(self).__name__} writes greedily and has nothing to sample from; drop do_sample=True"
            )


def check_vocabulary(models: Mapping[str, Any]) -> None:
    """Insist that models without a router among them speak of the same tokens by the same ids.

    Raises:
        SettingsError: there are none.
        VocabularyError: naming the model that differs from the first, and how.
    """
    if not models:
        raise SettingsError("a method of experts needs at least one; got none")
    (first, model), *others = models.items()
    check_models(model, dict(others), name=first)
