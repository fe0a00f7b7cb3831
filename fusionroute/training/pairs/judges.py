"""Who says which answer is better: the user's own function, a reward model, or a language model behind an endpoint.

A row is a prompt's row as it was read, with ``prompt`` in every one of them.
"""

import importlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from fusionroute.errors import SettingsError
from fusionroute.models.reward import RewardModel, load_reward_model
from fusionroute.rows import Row
from fusionroute.training.pairs.endpoint import Endpoint
from fusionroute.training.settings import PairSettings


class Judge(Protocol):
    """One score per answer, higher is better; None where there is no saying."""

    def __call__(self, rows: Sequence[Row], answers: Sequence[str]) -> list[float | None]: ...


def make_judge(settings: PairSettings, *, device: str | None = None) -> Judge:
    """The judge that the settings name; ``device`` is a reward model's.

    Raises:
        SettingsError: no such function, an address that is none, or a reward model of another kind.
        CheckpointError: the reward model is missing, half-written or corrupt.
    """
    if settings.checker is not None:
        return Checker(settings.checker)
    if settings.reward_model is not None:
        return RewardJudge(RewardModel(*load_reward_model(settings.reward_model, device=device)))
    assert settings.judge_url is not None
    assert settings.judge_model is not None
    return Endpoint(settings.judge_url, settings.judge_model)


class Checker:
    """A function of (rows, answers) that returns a score per answer, such as 1.0 for right and 0.0 for wrong.

    Args:
        name: ``"package.module:function"``, installed or in the working folder.
    """

    def __init__(self, name: str):
        self.name = name
        self.function = _function(name)

    def __call__(self, rows: Sequence[Row], answers: Sequence[str]) -> list[float | None]:
        scores = self.function(rows, answers)
        try:
            checked = [float(score) for score in scores]
        except (TypeError, ValueError) as error:
            raise SettingsError(f"checker {self.name} must return a number per answer ({error})") from error
        if len(checked) != len(answers):
            raise SettingsError(
                f"checker {self.name} returned {len(checked)} scores for {len(answers)} answers; "
                "it must return one per answer"
            )
        for score, answer in zip(checked, answers, strict=True):
            if not math.isfinite(score):
                raise SettingsError(
                    f"checker {self.name} gives {answer[:80]!r} the score {score}; scores are finite numbers"
                )
        return list(checked)


def _function(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier():
        raise SettingsError(f"checker is package.module:function; got {name!r}")
    with _working_folder_first():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # it is the user's code: whatever it raises, it is not there for us
            raise SettingsError(f"checker: {module_name} cannot be imported ({error}); mend it or its name") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        what = f"{function_name!r}, which is no function" if hasattr(module, function_name) else f"no {function_name!r}"
        raise SettingsError(f"checker: {module_name} has {what}; name a function of (rows, answers)")
    return function


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """A console script does not look for modules where it was started; people expect it to."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


class RewardJudge:
    """A reward model as a judge: it reads the row's prompt and the answer; None if they do not fit its context."""

    def __init__(self, model: RewardModel):
        self.model = model

    def __call__(self, rows: Sequence[Row], answers: Sequence[str]) -> list[float | None]:
        return self.model([row["prompt"] for row in rows], answers)
