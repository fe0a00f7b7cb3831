"""The zoo's tasks in lm-eval: the same questions and the same verdicts as the zoo's own contest."""

import logging

import lm_eval
import pytest

from fusionroute.evaluation.tasks import TaskLibrary, TaskSettings, primary_metric, scores
from fusionroute.zoo.contest import DECODING, SEEN_IN_DEVELOPMENT, unseen
from fusionroute.zoo.lm_eval import FOLDER
from fusionroute.zoo.lm_eval.questions import verdicts
from fusionroute.zoo.tasks import FAMILY_TASKS, TASKS, Example, check, examples
from scripted_lm import ScriptedLM

COUNT = 12


@pytest.fixture(scope="module")
def library() -> TaskLibrary:
    return TaskLibrary([FOLDER])


def answers(asked: list[Example]) -> dict[str, str]:
    """By prompt: right ones, damaged ones, other questions' ones and silence."""
    script = {}
    for at, example in enumerate(asked):
        other = asked[(at + 1) % len(asked)].answer
        script[example.prompt] = (example.answer, example.answer[:-1], other, "", example.answer + "\n")[at % 5]
    return script


def test_every_task_of_the_zoo_is_there(library: TaskLibrary) -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*TASKS, *FAMILY_TASKS, "zoo"}
    found = library.load(TaskSettings(task="zoo", limit=100))
    assert [task.task_name for task in found] == [f"zoo_{task}" for task in TASKS]


def test_questions_and_verdicts_are_those_of_the_contest(library: TaskLibrary) -> None:
    contest = unseen(COUNT)
    tasks = {task.task_name: task for task in library.load(TaskSettings(task="zoo", limit=COUNT))}
    lm = ScriptedLM({prompt: answer for each in contest.values() for prompt, answer in answers(each).items()})
    found = lm_eval.evaluate(lm, {"tasks": tasks}, limit=COUNT, bootstrap_iters=0)
    assert lm.contexts == [example.prompt for each in contest.values() for example in each]
    for name, asked in contest.items():
        expected = check(asked, list(answers(asked).values()))
        metric = primary_metric(tasks[f"zoo_{name}"])
        assert scores(found["samples"][f"zoo_{name}"], metric) == expected
        assert found["results"][f"zoo_{name}"][metric] == pytest.approx(sum(expected) / COUNT)
        assert any(expected)
        assert not all(expected)


def test_answers_are_decoded_as_in_the_contest(library: TaskLibrary) -> None:
    (task,) = library.load(TaskSettings(task="zoo_sums"))
    lm = ScriptedLM({"": ""})
    lm_eval.evaluate(lm, {"tasks": {task.task_name: task}}, limit=1, bootstrap_iters=0)
    assert lm.options == [{"max_gen_toks": DECODING.max_new_tokens, "do_sample": False, "until": []}]


def test_ledgers_are_asked_and_judged_like_the_other_tasks(library: TaskLibrary) -> None:
    for name, limit in (("ledger", 400), ("short_ledger", 160)):
        (task,) = library.load(TaskSettings(task=f"zoo_{name}", limit=COUNT))
        asked = examples(name, "test", SEEN_IN_DEVELOPMENT + COUNT)[SEEN_IN_DEVELOPMENT:]
        lm = ScriptedLM(answers(asked))
        found = lm_eval.evaluate(lm, {"tasks": {task.task_name: task}}, limit=COUNT, bootstrap_iters=0)
        assert lm.contexts == [example.prompt for example in asked]
        assert lm.options[0] == {"max_gen_toks": limit, "do_sample": False, "until": []}
        expected = check(asked, list(answers(asked).values()))
        assert scores(found["samples"][task.task_name], primary_metric(task)) == expected
        assert 0 < sum(expected) < COUNT


def test_each_repeat_of_a_question_gets_its_own_verdict(library: TaskLibrary) -> None:
    (task,) = library.load(TaskSettings(task="zoo_functions"))
    questions = [task.eval_docs[at] for at in (0, 1)]
    right = [question["completion"] for question in questions]
    assert verdicts([[right[0], "no", right[0]], [right[1]]], questions) == [[1, 0, 1], [1]]


def test_loading_is_quiet(library: TaskLibrary, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> None:
    level = logging.getLogger("lm_eval").level
    library.load(TaskSettings(task="zoo_words"))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").level == level
