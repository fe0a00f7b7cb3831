"""The metric has the original's contract, and what it runs is contained."""

import itertools
import math
import sys
import time
from types import ModuleType

import evaluate
import pytest

from fusionroute.errors import SettingsError
from fusionroute.evaluation.tasks.code_metric import SandboxedCodeEval, pass_at_k, sandboxed_code_eval, uses_sandbox

TESTS = "assert add(2, 3) == 5"
RIGHT, WRONG = "def add(a, b):\n    return a + b", "def add(a, b):\n    return a * b"


def test_the_contract_of_the_original() -> None:
    found, details = SandboxedCodeEval().compute(
        references=[TESTS, TESTS], predictions=[[RIGHT, WRONG], [WRONG, WRONG]], k=[1, 2]
    )
    assert found == {"pass@1": 0.25, "pass@2": 0.5}
    assert [[outcome["passed"] for _, outcome in details[task]] for task in (0, 1)] == [[True, False], [False, False]]
    failed = "failed: AssertionError"
    assert details[0][1] == (1, {"task_id": 0, "passed": False, "result": failed, "completion_id": 1})


def test_the_details_tell_what_became_of_each_candidate() -> None:
    candidates = [RIGHT, WRONG, f"open('x')\n{RIGHT}", f"while True: pass\n{RIGHT}"]
    _, details = SandboxedCodeEval(seconds=0.5).compute(references=[TESTS], predictions=[candidates], k=[1])
    refused = "refused: a program in the sandbox may not use open"
    assert [outcome["result"] for _, outcome in details[0]] == [
        "passed",
        "failed: AssertionError",
        refused,
        "timed out",
    ]


def test_a_k_above_the_number_of_candidates_is_left_out() -> None:
    found, _ = SandboxedCodeEval().compute(references=[TESTS, TESTS], predictions=[[RIGHT] * 2, [RIGHT]])
    assert found == {"pass@1": 1.0}


@pytest.mark.parametrize(("n", "correct", "k"), [(5, 0, 1), (5, 2, 1), (5, 2, 3), (5, 5, 2), (4, 1, 4), (6, 3, 2)])
def test_pass_at_k_is_the_chance_that_one_of_k_drawn_passes(n: int, correct: int, k: int) -> None:
    draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert pass_at_k(n, correct, k) == pytest.approx(1 - math.comb(n - correct, k) / math.comb(n, k))


def test_an_endless_program_costs_its_seconds_and_no_more() -> None:
    began = time.perf_counter()
    metric = SandboxedCodeEval(seconds=0.3)
    found, _ = metric.compute(references=[""], predictions=[["while True: pass", "x = 1"]], k=[1])
    assert found == {"pass@1": 0.5}
    found, _ = SandboxedCodeEval().compute(references=[""], predictions=[["while True: pass"]], k=[1], timeout=0.3)
    assert found == {"pass@1": 0.0}
    assert time.perf_counter() - began < 2.5


def test_references_and_predictions_must_pair_up() -> None:
    with pytest.raises(ValueError, match="1 references and 0 predictions"):
        SandboxedCodeEval().compute(references=[TESTS], predictions=[], k=[1])


def test_within_the_block_the_name_gives_ours() -> None:
    original = evaluate.load
    with sandboxed_code_eval(allow_code=True, seconds=1.0):
        metric = evaluate.load("code_eval")
        assert isinstance(metric, SandboxedCodeEval)
        assert metric.seconds == 1.0
    assert evaluate.load is original


def test_other_metrics_are_loaded_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "load", lambda *args, **options: (args, options))
    with sandboxed_code_eval(allow_code=False):
        assert evaluate.load("rouge", module_type="metric") == (("rouge",), {"module_type": "metric"})


def test_without_permission_it_says_what_that_would_mean() -> None:
    original = evaluate.load
    with (
        pytest.raises(
            SettingsError, match=r"'humaneval' runs the code that models write.*allow_code: true.*--allow-code"
        ),
        sandboxed_code_eval(allow_code=False, task="task 'humaneval'"),
    ):
        evaluate.load("code_eval")
    assert evaluate.load is original


def test_lm_evals_modules_import_and_keep_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """They run a program as they are imported, to see whether they may."""
    from importlib import import_module

    name = "lm_eval.tasks.humaneval.utils"
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with sandboxed_code_eval(allow_code=True):
        utils = import_module(name)
    assert uses_sandbox(utils.pass_at_k)
    assert utils.pass_at_k([TESTS], [[RIGHT]], k=1) == {"pass@1": 1.0}
    assert not uses_sandbox(test_the_contract_of_the_original)


def test_a_module_that_holds_the_original_is_imported_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    class Original(evaluate.EvaluationModule):
        name = "code_eval"

        def __init__(self) -> None: ...

    stale = ModuleType("lm_eval.tasks.stale")
    stale.compute_ = Original()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, stale.__name__, stale)
    with sandboxed_code_eval(allow_code=True):
        assert stale.__name__ not in sys.modules
