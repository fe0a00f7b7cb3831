"""The metric ``code_eval`` of Hugging Face's evaluate, with the same contract, run in our sandbox.

lm-eval's code tasks ask for it by name. The original comes from the hub and runs what models wrote with few limits.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import evaluate  # type: ignore[import-not-found, import-untyped, unused-ignore]
import numpy as np

from fusionroute.errors import SettingsError
from fusionroute.evaluation.sandbox import PASSED, outcomes

NAME = "code_eval"
SECONDS = 3.0  # as in HumanEval's own harness
MEGABYTES = 1024
NOT_ALLOWED = (
    "{task} runs the code that models write; it would run in a sandbox that contains accidents (limits of time and "
    "memory; files, processes and network refused) but is no prison for an attacker. "
    "Say `allow_code: true` or --allow-code"
)

# Candidates of one question: (number, what became of it), as in the original's second result.
Details = dict[int, list[tuple[int, dict[str, Any]]]]


class SandboxedCodeEval:
    """Stands in for the module that ``evaluate.load("code_eval")`` returns."""

    name = NAME

    def __init__(self, *, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> None:
        self.seconds = seconds
        self.megabytes = megabytes

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, float], Details]:
        """pass@k over all questions, and what became of each candidate: the ``result`` is one of `sandbox.outcomes`.

        Args:
            references: the tests of each question.
            predictions: the candidates of each question; a program is a candidate followed by the tests.
            k: those that no question has enough candidates for are left out, as in the original.
            num_workers: accepted for the original's sake; programs run one after another.
            timeout: seconds for each program instead of the metric's own.
        """
        if len(references) != len(predictions):
            raise ValueError(f"got {len(references)} references and {len(predictions)} predictions; give one for each")
        owners = [at for at, candidates in enumerate(predictions) for _ in candidates]
        programs = [f"{c}\n{tests}" for cs, tests in zip(predictions, references, strict=True) for c in cs]
        results = outcomes(programs, seconds=timeout or self.seconds, megabytes=self.megabytes)
        details: Details = {at: [] for at in range(len(predictions))}
        for at, result in zip(owners, results, strict=True):
            number = len(details[at])
            outcome = {"task_id": at, "passed": result == PASSED, "result": result, "completion_id": number}
            details[at].append((number, outcome))
        return _pass_at(k, details), details


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that at least one of ``k`` candidates passes, drawn without replacement from ``n`` of which
    ``correct`` do: 1 - C(n - correct, k) / C(n, k), the unbiased estimator of Chen et al., arXiv 2107.03374.
    """
    if n - correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - correct + 1, n + 1)))


@contextmanager
def sandboxed_code_eval(*, allow_code: bool, task: str = "this task", **limits: Any) -> Iterator[None]:
    """Within the block ``evaluate.load("code_eval")`` gives `SandboxedCodeEval`; other metrics load as ever.

    lm-eval's task modules keep the metric that they loaded at import, so ours stays in them after the block, and those
    that hold the original are imported afresh inside it. ``limits`` are those of `SandboxedCodeEval`.

    Raises:
        SettingsError: from ``evaluate.load``, where code is asked for but not allowed.
    """
    original = evaluate.load

    def load(path: str, *args: Any, **options: Any) -> Any:
        if path != NAME:
            return original(path, *args, **options)
        if not allow_code:
            raise SettingsError(NOT_ALLOWED.format(task=task))
        return SandboxedCodeEval(**limits)

    _forget_original()
    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = original


def uses_sandbox(function: Any) -> bool:
    """Whether the module that a task's function stands in holds our metric."""
    return any(isinstance(held, SandboxedCodeEval) for held in getattr(function, "__globals__", {}).values())


def _forget_original() -> None:
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.")]:
        held = vars(sys.modules[name]).values()
        if any(isinstance(each, evaluate.EvaluationModule) and each.name == NAME for each in held):
            del sys.modules[name]


def _pass_at(ks: Sequence[int], details: Details) -> dict[str, float]:
    counts = [(len(tried), sum(outcome["passed"] for _, outcome in tried)) for tried in details.values()]
    return {
        f"pass@{k}": float(np.mean([pass_at_k(n, correct, k) for n, correct in counts]))
        for k in ks
        if counts and all(n >= k for n, _ in counts)
    }
