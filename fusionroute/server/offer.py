"""What a server offers: every way of writing with one team or ensemble as a model id, over one set of weights."""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from fusionroute.engine.engine import MAX_BATCH, Engine, shared_scheduler
from fusionroute.engine.method import Method
from fusionroute.engine.runner import Runner
from fusionroute.engine.speculation import SpeculationSettings
from fusionroute.ensemble import Ensemble
from fusionroute.errors import SettingsError
from fusionroute.methods import ensemble_method
from fusionroute.methods.averaging import Averaging
from fusionroute.methods.single import Single
from fusionroute.models.ensemble import is_ensemble_file
from fusionroute.models.loading import Dtype
from fusionroute.models.prompt import PromptFormat
from fusionroute.models.vocabulary import ROUTER
from fusionroute.server.prompt_formats import AnyThreadFormat, WorkerThread
from fusionroute.team import Team

logger = logging.getLogger(__name__)

NAME = re.compile(r"[\w-][\w.-]*")


@dataclass(frozen=True)
class Offered:
    """One model id.

    Attributes:
        engine: who writes; `Engine.sequence` may be called from any thread, all else is the worker's.
        prompt_format: may be used from any thread; its tokenizer is none that the worker uses.
        writers: who may stand in the trace as a token's expert.
        weighted: whose weights a trace record holds, in its order; none where nothing is weighed.
        description: one line for people.
        takes_token_ids: whether a prompt may be token ids.
        scores_prompts: whether it can give log-probabilities of a prompt's tokens.
        draws_from_one: whether penalties and candidates mean something, see `Method`.
    """

    id: str
    engine: Engine
    prompt_format: PromptFormat
    writers: tuple[str, ...]
    weighted: tuple[str, ...]
    description: str
    takes_token_ids: bool
    scores_prompts: bool
    draws_from_one: bool

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """For everybody but the worker, whose sequences have their own."""
        return self.prompt_format.tokenizer

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.engine.method.context_length


@dataclass(frozen=True)
class Way:
    """A way of writing before it has an engine."""

    method: Method
    tokenizer: PreTrainedTokenizerBase  # the worker's
    prompt_format: PromptFormat
    writers: tuple[str, ...]
    weighted: tuple[str, ...]
    description: str
    takes_token_ids: bool = True


class Offer(Mapping[str, Offered]):
    """The model ids of one server, by id; the first is that of the whole team or ensemble.

    All engines share one scheduler, so that the limits hold for all of them together, and one runner for each model,
    so that there is one set of weights and one cache.

    Args:
        ways: by what follows the name in the id; "" is the whole.
        thread: of all prompt formats.
        max_batch, cache_limit, prefix_reuse, prefill_chunk: of all engines together; see `Engine`.

    Raises:
        SettingsError: a name that cannot stand in an id, or limits that mean nothing.
    """

    def __init__(
        self,
        name: str,
        ways: Mapping[str, Way],
        thread: WorkerThread,
        *,
        max_batch: int = MAX_BATCH,
        cache_limit: int | str | None = None,
        prefix_reuse: bool = True,
        prefill_chunk: int | None = None,
    ):
        if not NAME.fullmatch(name):
            raise SettingsError(f"a model id is letters, digits, '_', '-' and, inside, '.'; got {name!r}: give a name")
        if max_batch < 1:
            raise SettingsError(f"max_batch must be at least 1; got {max_batch}")
        methods = [way.method for way in ways.values()]
        self.name = name
        self.scheduler = shared_scheduler(
            methods, max_batch=max_batch, cache_limit=cache_limit, prefix_reuse=prefix_reuse
        )
        self.runners = tuple(dict.fromkeys(runner for method in methods for runner in method.runners))
        self._thread = thread
        offered = [self._engaged(what, way, prefill_chunk) for what, way in ways.items()]
        self._offered = {each.id: each for each in offered}

    def __getitem__(self, id: str) -> Offered:
        return self._offered[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._offered)

    def __len__(self) -> int:
        return len(self._offered)

    def claim(self) -> None:
        """The calling thread is from now on the one that steps the engines."""
        self._thread.claim()

    @classmethod
    def open(
        cls,
        location: str | Path,
        name: str | None = None,
        *,
        device: str | None = None,
        dtype: Dtype = None,
        speculation: SpeculationSettings | None = None,
        **limits: Any,
    ) -> Self:
        """Load a team (a folder or hub id) or an ensemble (a YAML file) and offer it.

        Args:
            name: as a model id; None takes the folder's or file's.
            device, dtype: for every model.
            speculation: of a team; see `Team.generate`.
            **limits: ``max_batch``, ``cache_limit``, ``prefix_reuse`` and ``prefill_chunk``, as for `Offer`.

        Raises:
            SettingsError, CheckpointError, VocabularyError, UnsupportedModelError: as the team and the ensemble do.
        """
        if is_ensemble_file(location):
            if speculation is not None:
                raise SettingsError("speculation is for teams, and an ensemble's drafter is its own; leave it out")
            ensemble = Ensemble.from_file(location, device=device, dtype=dtype)
            return cls.of_ensemble(ensemble, name or _as_name(Path(location).stem), **limits)
        if speculation is not None:
            speculation.require_model()
        team = Team.from_pretrained(location, device=device, dtype=dtype)
        return cls.of_team(
            team, name or _as_name(Path(location).expanduser().resolve().name), speculation=speculation, **limits
        )

    @classmethod
    def of_team(
        cls,
        team: Team,
        name: str,
        *,
        speculation: SpeculationSettings | None = None,
        **limits: Any,
    ) -> Self:
        """``name`` (FusionRoute), and behind it ``/no-complement``, ``/router``, ``/average`` and each expert alone."""
        thread = WorkerThread()
        ways = team_ways(team, AnyThreadFormat(team.prompt_format, thread), speculation)
        return cls(name, ways, thread, **limits)

    @classmethod
    def of_ensemble(cls, ensemble: Ensemble, name: str, **limits: Any) -> Self:
        """``name`` (the file's method), and behind it each member alone."""
        thread = WorkerThread()
        return cls(name, ensemble_ways(ensemble, thread), thread, **limits)

    def _engaged(self, what: str, way: Way, prefill_chunk: int | None) -> Offered:
        return Offered(
            id=f"{self.name}/{what}" if what else self.name,
            engine=Engine(way.method, way.tokenizer, scheduler=self.scheduler, prefill_chunk=prefill_chunk),
            prompt_format=way.prompt_format,
            writers=way.writers,
            weighted=way.weighted,
            description=way.description,
            takes_token_ids=way.takes_token_ids,
            scores_prompts=way.method.scores_prompts,
            draws_from_one=way.method.draws_from_one,
        )


class RunnerPool:
    """A ``make_runner`` that makes one runner for each model."""

    def __init__(self) -> None:
        self._runners: dict[int, Runner] = {}  # by id(model); each runner keeps its model alive

    def __call__(self, model: Any, name: str) -> Runner:
        if id(model) not in self._runners:
            self._runners[id(model)] = Runner(model, name)
        return self._runners[id(model)]

    def adopt(self, runner: Runner) -> None:
        """Give this one out for its model."""
        self._runners[id(runner.model)] = runner


def team_ways(
    team: Team, prompt_format: PromptFormat, speculation: SpeculationSettings | None = None
) -> dict[str, Way]:
    """All ways of writing with a team, by what follows its name."""
    names, all_names = team.expert_names, ", ".join(team.expert_names)
    pool = RunnerPool()

    def way(method: Method, writers: tuple[str, ...], weighted: tuple[str, ...], description: str) -> Way:
        return Way(method, team.tokenizer, prompt_format, writers, weighted, description)

    def alone(model: Any, name: str, description: str) -> Way:
        return way(Single(model, name, make_runner=pool), (name,), (), description)

    ways = {
        "": way(
            team.method(speculation=speculation, make_runner=pool),
            names,
            names,
            f"FusionRoute: for every token the router picks one of {all_names} and adds its own log-probabilities",
        ),
        "no-complement": way(
            team.method(complement=False, speculation=speculation, make_runner=pool),
            names,
            names,
            f"routing only: for every token the router picks one of {all_names}, which writes it alone",
        ),
        ROUTER: alone(team.router, ROUTER, "the router's language model alone"),
    }
    if len(names) > 1:
        description = f"the average of the next-token probabilities of {all_names}"
        ways["average"] = way(Averaging(team.experts, make_runner=pool), names, names, description)
    for name, model in team.experts.items():
        if name in ways:
            logger.warning("an expert is called %r, so %s is not offered", name, ways[name].description)
        ways[name] = alone(model, name, f"the expert {name} alone")
    return ways


def ensemble_ways(ensemble: Ensemble, thread: WorkerThread) -> dict[str, Way]:
    """The ensemble's method and each member alone, by what follows the ensemble's name."""
    members = [replace(member, prompt=AnyThreadFormat(member.prompt, thread)) for member in ensemble.members]
    drafter, options = members[0], ensemble.options
    method = ensemble_method(members, options)
    pool = RunnerPool()
    for runner in method.runners:
        assert isinstance(runner, Runner)
        pool.adopt(runner)
    writers = tuple(member.name for member in method.members)
    others = ", ".join(writers[1:]) or "nobody"
    where = "at every token" if options.method == "averaging" else "where that is safe and useful"
    ways = {
        "": Way(
            method,
            drafter.pieces.tokenizer,
            drafter.prompt,
            writers,
            writers,
            f"{options.method} with {options.host}: {drafter.name} writes, {others} are asked {where}",
            takes_token_ids=False,  # of which tokenizer? the members' differ
        )
    }
    for member in members:
        alone = Single(member.model, member.name, make_runner=pool)
        description = f"the member {member.name} alone"
        ways[member.name] = Way(alone, member.pieces.tokenizer, member.prompt, (member.name,), (), description)
    return ways


def _as_name(name: str) -> str:
    """A folder's or file's name as it can stand in a model id."""
    return re.sub(r"[^\w.-]+", "-", name).lstrip(".") or "model"
