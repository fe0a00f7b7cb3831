"""What a compare file may say: methods × tasks × seeds, and what all of them share."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from fusionroute.config import Settings, nearest
from fusionroute.evaluation.compare.lineup import ENTRIES, SEED, Entry, ScorerSettings, Shared, filled
from fusionroute.evaluation.tasks import TaskSettings
from fusionroute.models.loading import ModelReference
from fusionroute.models.prompt import PromptName
from fusionroute.models.team import Experts


class Decoding(Settings):
    """How answers are decoded; what is left out stays as each task says, which for most is greedy."""

    max_new_tokens: int | None = Field(None, gt=0)
    do_sample: bool | None = None
    temperature: float | None = Field(None, ge=0)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _sampling_is_said_aloud(self) -> Self:
        drawn = [name for name in ("temperature", "top_k", "top_p", "min_p") if getattr(self, name) is not None]
        if drawn and not self.do_sample:
            raise ValueError(f"{drawn[0]} is of use in sampling only; add do_sample: true, or leave it out")
        if self.do_sample and self.temperature is None:
            raise ValueError("do_sample needs a temperature, such as 1.0")
        return self

    @property
    def overrides(self) -> dict[str, Any]:
        """What the file says, in lm-eval's words."""
        said = self.model_dump(exclude_none=True)
        if "max_new_tokens" in said:
            said["max_gen_toks"] = said.pop("max_new_tokens")
        return said


class CompareSettings(Settings):
    """A compare file. ``{seed}`` in a path stands for each of the seeds in turn."""

    title: str | None = None
    experts: Experts
    prompt: PromptName = None  # one format for all methods: chat_template, a named template, or text as it is
    generation: Decoding = Decoding()
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    base: ModelReference | None = None  # what the experts were tuned from; merges need it
    scorer: ScorerSettings = ScorerSettings()
    methods: dict[str, Entry]
    tasks: tuple[TaskSettings, ...] = Field(min_length=1)
    reference: str | None = None  # the method that all others are held against; None = the last one
    include: tuple[str, ...] = ()  # folders of lm-eval tasks of your own
    allow_code: bool = False  # run what models have written, for tasks that judge code by running it
    max_batch: int = Field(64, ge=1)
    cache_limit: int | str | None = None
    device: str | None = None
    dtype: str | None = None

    @property
    def held_against(self) -> str:
        return self.reference or list(self.methods)[-1]

    @property
    def has_seeded_models(self) -> bool:
        """Whether experts or base are others for each seed: then so is every method."""
        return SEED in str((self.experts, self.base))

    def shared(self, seed: int | None) -> Shared:
        """What all methods have in common, for one seed; None where no seed makes a difference."""
        experts = {name: self._at(reference, seed) for name, reference in self.experts.items()}
        base = None if self.base is None else self._at(self.base, seed)
        return Shared(experts, base, self.scorer, self.prompt, self.device, self.dtype)

    @staticmethod
    def _at(reference: ModelReference, seed: int | None) -> ModelReference:
        said = reference.model_dump(exclude_unset=True)
        return ModelReference.model_validate(said if seed is None else filled(said, seed))

    @property
    def task_names(self) -> list[str]:
        return [task.task for task in self.tasks]

    @field_validator("base", mode="before")
    @classmethod
    def _a_base_may_be_a_name(cls, base: Any) -> Any:
        return _reference(base)

    @field_validator("methods", mode="before")
    @classmethod
    def _each_method_is_of_a_kind(cls, methods: Any) -> Any:
        if not isinstance(methods, dict) or not methods:
            raise ValueError("methods map names of your choice to ways of answering, such as {math: {method: single}}")
        return {str(name): _entry(str(name), values) for name, values in methods.items()}

    @field_validator("tasks", mode="before")
    @classmethod
    def _a_task_may_be_a_name(cls, tasks: Any) -> Any:
        if not isinstance(tasks, list | tuple):
            raise ValueError("tasks are a list of names, or of {task: name} with options")
        return [{"task": task} if isinstance(task, str) else task for task in tasks]

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if self.held_against not in self.methods:
            raise ValueError(f"reference: {nearest(self.held_against, self.methods)}")
        _refuse_twins("methods", list(self.methods))
        _refuse_twins("tasks", self.task_names)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: each stands for itself; got {self.seeds}")
        for name, entry in self.methods.items():
            if problem := entry.problem(self.experts, self.base):
                raise ValueError(f"methods.{name}: {problem}")
        return self


def slug(name: str) -> str:
    """A name as it stands in file names."""
    return re.sub(r"[^\w.-]+", "-", name.strip().lower()).strip("-.") or "-"


def _refuse_twins(kind: str, names: list[str]) -> None:
    """Results are kept in files by name, so two names must not give one file."""
    twins = [place for place, count in Counter(slug(name) for name in names).items() if count > 1]
    if twins:
        same = [name for name in names if slug(name) == twins[0]]
        raise ValueError(f"{kind} {' and '.join(map(repr, same))} would share the folder {twins[0]!r}; rename one")


def _reference(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


def _entry(name: str, values: Any) -> Entry:
    if isinstance(values, Entry):
        return values
    values = {"method": values} if isinstance(values, str) else values
    if not isinstance(values, Mapping) or "method" not in values:
        raise ValueError(f"{name}: say which method, one of {', '.join(ENTRIES)}")
    if values["method"] not in ENTRIES:
        raise ValueError(f"{name}: method: {nearest(values['method'], ENTRIES)}")
    return ENTRIES[values["method"]].parse(values, source=name)
