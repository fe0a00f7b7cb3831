"""The mixtures' tasks in lm-eval: the same questions, options and answers as `questions` draws."""

import lm_eval
import pytest

from fusionroute.evaluation.tasks import TaskLibrary, TaskSettings, primary_metric, scores
from fusionroute.zoo.lm_eval import FOLDER
from fusionroute.zoo.moe.tasks import HELD_OUT, MOE_TASKS, SEEN, questions
from scripted_lm import ScriptedLM

COUNT = 6


@pytest.fixture(scope="module")
def library() -> TaskLibrary:
    return TaskLibrary([FOLDER])


def test_every_task_is_there(library: TaskLibrary):
    assert {path.stem for path in (FOLDER / "moe").glob("*.yaml")} == {*MOE_TASKS, "zoo_moe_seen", "zoo_moe_held_out"}
    for group, tasks in (("zoo_moe_seen", SEEN), ("zoo_moe_held_out", HELD_OUT)):
        found = library.load(TaskSettings(task=group, limit=COUNT))
        assert {task.task_name for task in found} == {f"zoo_moe_{task}" for task in tasks}


def test_a_free_answer_must_be_written_exactly(library: TaskLibrary):
    (task,) = library.load(TaskSettings(task="zoo_moe_swap", limit=COUNT))
    asked = questions("swap", "test", COUNT)
    written = [question.answer if at % 2 else question.answer[:-1] for at, question in enumerate(asked)]
    lm = ScriptedLM({question.text: answer for question, answer in zip(asked, written, strict=True)})
    found = lm_eval.evaluate(lm, {"tasks": {task.task_name: task}}, limit=COUNT, bootstrap_iters=0)
    assert lm.contexts == [question.text for question in asked]
    assert scores(found["samples"][task.task_name], primary_metric(task)) == [at % 2 for at in range(COUNT)]


def test_options_are_those_of_the_question(library: TaskLibrary):
    (task,) = library.load(TaskSettings(task="zoo_moe_analogy", limit=COUNT))
    for document, question in zip(task.test_docs(), questions("analogy", "test", 100), strict=True):
        assert task.doc_to_text(document) == question.text
        assert tuple(task.doc_to_choice(document)) == question.options
        assert question.options[task.doc_to_target(document)] == question.answer
