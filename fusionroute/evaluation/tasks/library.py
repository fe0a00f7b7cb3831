"""Benchmarks: lm-eval's tasks and your own, with local data where you say so, and one clear line where one is missing.

Knows nothing of models or methods.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind
from pydantic import Field, field_validator, model_validator

from fusionroute.config import Settings, nearest
from fusionroute.errors import FusionRouteError, SettingsError
from fusionroute.evaluation.tasks.code_metric import NOT_ALLOWED, sandboxed_code_eval, uses_sandbox
from fusionroute.evaluation.tasks.data import (
    FORMATS,
    hub_answers,
    local_data,
    offline,
    shots_split,
    unbuildable,
    unreachable,
    unreadable,
)
from fusionroute.evaluation.tasks.index import OWN, TASKS, Registry, TaskNames, first_task, raw_config
from fusionroute.evaluation.tasks.sentences import check_splitter, nothing_fetched

# Libraries that lm-eval leaves to its extras, by what a task imports.
EXTRAS = {
    "math": ("math_verify", "sympy", "antlr4", "latex2sympy2_extended"),
    "ifeval": ("langdetect", "immutabledict", "nltk"),
}
TOO_OLD = re.compile(r"pip install|\bversion\b.* is not >=")  # how lm-eval's tasks assert that a library will do
MEANS = ("mean", "nanmean", "agg_inst_level_acc")  # aggregations by their functions' names
NO_DATA = (ConnectionError, FileNotFoundError)  # what `datasets` raises for a data set that it cannot get


class TaskSettings(Settings):
    """One benchmark of a comparison; the name alone will do."""

    task: str  # lm-eval's name of a task, group or tag, or that of a YAML task of your own
    limit: int | None = Field(None, gt=0)  # that many questions, the first ones; of a group: of each of its tasks
    num_fewshot: int | None = Field(None, ge=0)  # None = as the task says
    metric: str | None = None  # as lm-eval writes it, "exact_match,flexible-extract"; None = the task's first
    data: str | dict[str, str] | None = None  # a file with the questions, or a file per split, instead of the hub

    @model_validator(mode="before")
    @classmethod
    def _the_name_alone_will_do(cls, values: Any) -> Any:
        return {"task": values} if isinstance(values, str) else values

    @field_validator("data")
    @classmethod
    def _files_are_of_a_known_format(cls, data: str | dict[str, str] | None) -> str | dict[str, str] | None:
        for file in data.values() if isinstance(data, dict) else [data] if data is not None else ():
            if Path(file).suffix not in FORMATS:
                raise ValueError(f"data files end in {', '.join(FORMATS)}; got {file!r}")
        return data


class TaskLibrary:
    """Tasks by name; what takes long, the index and asking whether the hub answers, is done once.

    Args:
        include: folders with YAML tasks of your own.
    """

    def __init__(self, include: Sequence[str | Path] = ()) -> None:
        self.names = TaskNames(include)

    def load(self, settings: TaskSettings, *, allow_code: bool = False) -> list[Task]:
        """The task, or those of the group or tag, ready for ``lm_eval.evaluate``.

        Each call gives new ones: lm-eval keeps requests and the state of its draws in them, so a task that served one
        method would show other examples to the next.

        Args:
            allow_code: tasks that run what models have written may do so, in the sandbox.

        Raises:
            SettingsError: an unknown task, metric or split; code without permission; a library that is not installed;
                a task whose functions cannot be imported.
            DataError: data that cannot be reached or does not fit.
        """
        entry, registry = self.names.find(settings.task)
        first = first_task(entry, registry)
        config = raw_config(first)
        self._check(settings, entry, config, allow_code)
        with ExitStack() as block:
            block.enter_context(_errors_only())
            block.enter_context(sandboxed_code_eval(allow_code=allow_code, task=f"task {settings.task!r}"))
            with _installed(settings.task):
                if _is_ifeval(first):
                    block.enter_context(nothing_fetched())
                is_local = settings.data is not None or config.get("custom_dataset") is not None
                block.enter_context(offline(not is_local and not self._hub_answers))
                tasks = self._build(settings, entry, registry, config)
        for task in tasks:
            task.set_fewshot_seed(DEFAULT_OTHER_SEED)
            if getattr(task, "UNSAFE_CODE", False):
                _check_sandboxed(task)
            check_splitter(task.task_name, islice(task.eval_docs, settings.limit), lambda: self._hub_answers)
            primary_metric(task, settings.metric)
        return tasks

    @cached_property
    def _hub_answers(self) -> bool:
        return hub_answers()

    def _check(self, settings: TaskSettings, entry: Entry, config: Mapping[str, Any], allow_code: bool) -> None:
        """What can be said before anything is imported or fetched."""
        task = settings.task
        if config.get("unsafe_code") and not allow_code:
            raise SettingsError(NOT_ALLOWED.format(task=f"task {task!r}"))
        if settings.data is not None and entry.kind is not Kind.TASK:
            kind = "is written in Python" if entry.kind is Kind.PY_TASK else "stands for several tasks"
            raise SettingsError(f"data cannot be given for {task!r}, which {kind}; name YAML tasks one by one")
        shows = shots_split(config) is not None or (config.get("fewshot_config") or {}).get("samples")
        if settings.num_fewshot and not shows and entry.kind is Kind.TASK:
            raise SettingsError(f"task {task!r} has no examples to show; got num_fewshot={settings.num_fewshot}, use 0")

    def _build(self, settings: TaskSettings, entry: Entry, registry: Registry, config: Mapping[str, Any]) -> list[Task]:
        shots = config.get("num_fewshot") or 0 if settings.num_fewshot is None else settings.num_fewshot
        overrides: dict[str, Any] = {"num_fewshot": shots} if settings.num_fewshot is not None else {}
        if entry.kind in TASKS:
            overrides["num_fewshot"] = shots  # lm-eval's own evaluation needs a number
        if settings.data is not None:
            overrides |= local_data(settings.task, config, settings.data, shots)
        try:
            built = TaskFactory().build(entry, overrides=overrides, registry=registry)
            tasks = _leaves(built)
            if isinstance(built, Group) and not _is_pooled(built):
                _check_alike(settings, tasks)
            return tasks
        except FusionRouteError:
            raise
        except NO_DATA as error:
            raise unreachable(settings.task, config, shots, error) from error
        except (jinja2.TemplateError, AttributeError, LookupError, TypeError, ValueError) as error:
            if settings.data is None:
                raise unbuildable(settings.task, config, error) from error
            raise unreadable(settings.task, config, error, settings.data) from error


def primary_metric(task: Task, wanted: str | None = None) -> str:
    """The metric that a task is judged by, as lm-eval writes it: ``name,filter``.

    It is a mean over the questions of which more is better, so that it can be averaged, paired and resampled.

    Args:
        wanted: None is the task's first such metric after its first filter; a name alone takes the first filter.

    Raises:
        SettingsError: the task has no such metric, such as one of perplexities; the nearest is named.
    """
    filters = [each.name for each in task._filters]
    names = [name for metric in task.aggregation() if _is_mean(task, metric) for name in _result_names(task, metric)]
    allowed = [f"{name},{each}" for name in names for each in filters]
    if not allowed:
        raise SettingsError(
            f"task {task.task_name!r} has no metric that is a mean over its questions, more being better (it has "
            f"{', '.join(task.aggregation())}), so methods cannot be compared on it question by question"
        )
    if wanted is None:
        return allowed[0]
    full = wanted if "," in wanted else f"{wanted},{filters[0]}"
    if full not in allowed:
        raise SettingsError(f"metric of task {task.task_name!r}: {nearest(wanted, allowed)}")
    return full


def sample_score(sample: Mapping[str, Any], metric: str) -> float:
    """What one of lm-eval's logged samples scored; the mean where a question is scored in parts, as in IFEval.

    Raises:
        SettingsError: the metric is one of the whole task, such as a perplexity or F1, or the sample is another's.
    """
    name, _, kind = metric.partition(",")
    if name not in sample or (kind and sample.get("filter") != kind):
        found = [f"{each},{sample.get('filter')}" for each in sample.get("metrics", ())]
        raise SettingsError(f"metric of a sample: {nearest(metric, found)}")
    value = sample[name]
    if isinstance(value, tuple):
        raise SettingsError(f"metric {metric!r} has no value for one question; choose another for this comparison")
    if isinstance(value, list):
        return sum(map(float, value)) / len(value)
    return float(value)


def scores(samples: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """The score of each question, in order, from lm-eval's logged samples, which hold every filter in turn."""
    kind = metric.partition(",")[2]
    mine = [sample for sample in samples if not kind or sample.get("filter") == kind]
    if samples and not mine:
        raise SettingsError(f"filter of {metric!r}: {nearest(kind, dict.fromkeys(s['filter'] for s in samples))}")
    return [sample_score(sample, metric) for sample in sorted(mine, key=lambda sample: sample["doc_id"])]


def _leaves(built: Task | Group | list[Task]) -> list[Task]:
    if isinstance(built, Group):
        return list(built.get_all_tasks())
    return built if isinstance(built, list) else [built]


def _is_pooled(group: Group) -> bool:
    """Whether every question of the group counts the same, rather than every task."""
    return all(metric.weight_by_size for metric in group.aggregate_metric_list or ())


def _check_alike(settings: TaskSettings, tasks: list[Task]) -> None:
    """Raises `SettingsError` for a group whose tasks count the same though they have more or fewer questions."""
    sizes = {task.task_name: min(len(task.eval_docs), settings.limit or sys.maxsize) for task in tasks}
    if len(set(sizes.values())) > 1:
        raise SettingsError(
            f"group {settings.task!r} counts each of its tasks the same, but a comparison counts each question of a "
            f"group; name its tasks one by one ({', '.join(sizes)}), or set a limit that all of them reach "
            f"({min(sizes.values())})"
        )


def _is_mean(task: Task, metric: str) -> bool:
    """A mean (of parts too, as IFEval's of instructions), or code's pass@k, and more of it is better."""
    name = getattr(task.aggregation()[metric], "__name__", "")
    return name in MEANS and bool(task.higher_is_better().get(metric, True))


def _result_names(task: Task, metric: str) -> list[str]:
    """The names under which a metric's values appear: pass@k gives one for each k."""
    ks = getattr(task, "_metric_fn_kwargs", {}).get(metric, {}).get("k")
    return [f"pass@{k}" for k in ks] if ks else [metric]


def _check_sandboxed(task: Task) -> None:
    """Raises `SettingsError` for a task that runs code by itself: permission was given for the sandbox only."""
    functions: list[Callable] = [each["metric"] for each in task.config.metric_list or () if callable(each["metric"])]
    if not any(uses_sandbox(function) for function in [*functions, task.config.process_results]):
        raise SettingsError(
            f"task {task.task_name!r} runs code outside the sandbox; choose one that uses the metric code_eval, such "
            "as humaneval or mbpp, or run it by lm-eval's own command on a machine that may break"
        )


@contextmanager
def _installed(task: str) -> Iterator[None]:
    """A library that a task imports and that is missing becomes one line that says how to install it."""
    try:
        yield
    except (ImportError, AssertionError) as error:
        missing = _missing_library(error)
        if missing is None:
            what = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
            raise SettingsError(
                f"task {task!r} cannot be imported: {what}; install what it asks for or put its functions right"
            ) from error
        extra = _extra(missing)
        what = f"'lm-eval[{extra}]'" if extra else missing
        raise SettingsError(f"task {task!r} needs libraries that are not installed: pip install {what}") from error


def _missing_library(error: BaseException | None) -> str | None:
    """The library that is not there, or the line in which lm-eval asks for another version; None if it is not that.

    lm-eval's tasks wrap what Python says in errors of their own, which name no module.
    """
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name and find_spec(error.name.partition(".")[0]) is None:
            return error.name.partition(".")[0]
        if isinstance(error, AssertionError) and TOO_OLD.search(str(error)) and _extra(str(error)):
            return str(error)
        error = error.__cause__
    return None


def _extra(missing: str) -> str | None:
    """lm-eval's extra that brings the library."""
    return next((extra for extra, names in EXTRAS.items() if any(name in missing for name in names)), None)


def _is_ifeval(entry: Entry) -> bool:
    """One of lm-eval's own variants of IFEval, which fetch as they are imported; not a folder of that name."""
    if entry.yaml_path is None:
        return False
    path, own = entry.yaml_path.resolve(), OWN.resolve()
    return path.is_relative_to(own) and "ifeval" in str(path.relative_to(own))


@contextmanager
def _errors_only() -> Iterator[None]:
    """lm-eval warns of every default that its own tasks leave open."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
