"""The paper's five benchmarks on stand-ins in the real schemas, as configs/paper/evaluate/llama3.yaml names them.

A scripted model answers some questions right and some wrong; the figures were counted by hand.
"""

import socket
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from huggingface_hub import constants

from fusionroute.config import read_yaml
from fusionroute.evaluation.tasks import TaskLibrary, TaskSettings, scores
from fusionroute.evaluation.tasks.index import TaskNames, own_names
from scripted_lm import ScriptedLM

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "configs" / "paper" / "evaluate"
STAND_INS = ROOT / "tests" / "data" / "benchmarks"


def stand_in(name: str) -> str:
    return str(STAND_INS / f"{name}.jsonl")


@pytest.fixture(scope="module")
def library() -> TaskLibrary:
    return TaskLibrary()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No offline switch and no way out: whoever tries is seen."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something has tried to reach the network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def ask(library: TaskLibrary, task: TaskSettings, script: dict[str, str]) -> tuple[ScriptedLM, dict, list[dict]]:
    """The model, what lm-eval aggregates, and its logged samples."""
    (loaded,) = library.load(task, allow_code=True)
    lm = ScriptedLM(script)
    tasks = {"tasks": {loaded.task_name: loaded}}
    found = lm_eval.evaluate(lm, tasks, limit=task.limit, bootstrap_iters=0, confirm_run_unsafe_code=True)
    return lm, found["results"][loaded.task_name], found["samples"][loaded.task_name]


def in_the_paper(name: str) -> dict[str, Any]:
    return next(task for task in read_yaml(PAPER / "llama3.yaml")["tasks"] if task["task"] == name)


# Benchmark, stand-in by split, what is answered to what, scores by hand.
CASES: dict[str, tuple[dict[str, str], dict[str, str], list[float]]] = {
    "gsm8k": (
        {"test": "gsm8k_test"},
        {
            "Nora": "6*7=42 jars, and 42-5=37.\n#### 37",
            "ferry": "It carries 9 times 120, so 1,080 passengers.",  # the last number counts, with its comma
            "Otto": "He earns 112 and keeps $82 of it, which is 82 of 112.",  # the last number is another
            "baker": "Each guest gets 6.",
        },
        [1, 1, 0, 0],
    ),
    "minerva_math500": (
        {"test": "math500_test"},
        {
            "3x + 4": "Subtract $4$ and divide by $3$: $\\boxed{5}$",
            "0.375": "That is $\\boxed{\\frac{6}{16}}$",  # equal in value
            "area $50$": "The side is $\\boxed{5\\sqrt{3}}$",
            "remainder": "I do not know.",
        },
        [1, 1, 0, 0],
    ),
    "mbpp": (
        {"test": "mbpp_test"},
        {
            "capital letter": "def count_capitals(text):\n    return sum(word[0].isupper() for word in text.split())\n",
            "two largest": "def two_largest(numbers):\n    return sorted(numbers)[:2]",  # the smallest
            "swap the": "import itertools\ndef swap_pairs(values):\n    return values[::-1]",
        },
        [1, 0, 0],
    ),
    "humaneval_instruct": (
        {"test": "humaneval_test"},
        {
            "longest_run": "    best = run = 0\n    for at, value in enumerate(values):\n"
            "        run = run + 1 if at and value == values[at - 1] else 1\n        best = max(best, run)\n"
            "    return best\n```\nIt counts.",
            "digit_root": "    return sum(map(int, str(number)))\n```",  # adds once
            "is_leap": "    return open('/etc/hostname') is not None\n```",  # refused by the sandbox
        },
        [1, 0, 0],
    ),
    "ifeval": (
        {"train": "ifeval_train"},
        {
            "harbour": "Masts rise over the quay and gulls cry above the nets.",
            "colours": "One is amber.",  # has the word, is too short
            "colleague": "good morning to you, my dear friend, i hope that you have slept well.",
            "JSON": "My name is Ada.",
        },
        [1, 0, 1, 0],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_benchmark_runs_on_local_files_and_scores_as_counted_by_hand(library: TaskLibrary, name: str) -> None:
    files, script, expected = CASES[name]
    task = TaskSettings.parse(in_the_paper(name) | {"data": {split: stand_in(file) for split, file in files.items()}})
    lm, results, samples = ask(library, task, script)
    assert scores(samples, task.metric) == expected
    assert results[task.metric] == pytest.approx(sum(expected) / len(expected))
    assert len(lm.contexts) == len(expected)


def test_ifeval_scores_its_instructions_one_by_one(library: TaskLibrary) -> None:
    task = TaskSettings(task="ifeval", data=stand_in("ifeval_train"), metric="inst_level_strict_acc")
    _, results, samples = ask(library, task, CASES["ifeval"][1])
    assert scores(samples, "inst_level_strict_acc,none") == [1, 0.5, 1, 0]
    assert results["inst_level_strict_acc,none"] == pytest.approx(3 / 5)  # of five instructions


def test_the_other_forms_of_the_code_tasks(library: TaskLibrary) -> None:
    answers = {"longest_run": "    return 2\n", "digit_root": "    return 1 + (number - 1) % 9 if number else 0\n"}
    task = TaskSettings(task="humaneval", limit=2, data=stand_in("humaneval_test"))
    _, results, samples = ask(library, task, answers)
    assert scores(samples, "pass@1,create_test") == [0, 1]
    assert results["pass@1,create_test"] == 0.5
    answers = {"capital": "\ncount_capitals = 3\n```", "two largest": "\nimport heapq\n", "swap": "nothing"}
    answers["two largest"] += "def two_largest(numbers):\n    return heapq.nlargest(2, numbers)\n```"
    task = TaskSettings(task="mbpp_instruct", num_fewshot=0, data=stand_in("mbpp_test"))
    lm, results, _ = ask(library, task, answers)
    assert results["pass_at_1,extract_code"] == pytest.approx(1 / 3)
    assert lm.contexts[0].endswith("```python\n")


def test_shots_come_from_the_local_split(library: TaskLibrary) -> None:
    data = {"test": stand_in("gsm8k_test"), "train": stand_in("gsm8k_train")}
    task = TaskSettings(task="gsm8k", limit=2, data=data)
    (lm, results, _), (again, _, _) = (ask(library, task, {"": "#### 37"}) for _ in range(2))
    assert results["exact_match,strict-match"] == 0.5
    assert [context.count("Question:") for context in lm.contexts] == [6, 6]
    assert lm.contexts == again.contexts  # every method is shown the same examples


def test_every_task_of_the_papers_exists() -> None:
    for path in sorted(PAPER.glob("*.yaml")):
        settings = read_yaml(path)
        names = TaskNames([ROOT / folder for folder in settings.get("include", ())])
        for task in settings["tasks"]:
            name = TaskSettings.parse(task).task
            if name == "mmlu":  # a group of lm-eval's: finding it takes its whole index
                assert ("group", name) in own_names()
            else:
                assert names.find(name)[0].name == name


@pytest.mark.parametrize(("group", "count"), [("safe_bbh", 15), ("safe_mmlu_redux", 30)])
def test_the_groups_of_safe_hold_tasks_of_lm_eval(group: str, count: int) -> None:
    entry, registry = TaskNames([PAPER / "tasks"]).find(group)
    members = (entry.cfg or {})["task"]
    assert len(set(members)) == count
    assert set(members) <= registry.keys()
