"""The questions: right answers, many wordings, splits that share nothing, held-out tasks that ask for known skills."""

import random

import pytest

from fusionroute.errors import DataError
from fusionroute.moe.questions.questions import Question
from fusionroute.zoo.moe.lexicon import KIND_OF, OPPOSITE_OF, VASK_FOR, WORDS
from fusionroute.zoo.moe.skills import SKILLS
from fusionroute.zoo.moe.splits import BUILT_FROM, SPLITS, TUNED_ON, split_of, without_courtesy
from fusionroute.zoo.moe.tasks import HELD_OUT, MOE_TASKS, SEEN, questions
from fusionroute.zoo.moe.wordings import CLOSINGS, FAMILIAR, OPENINGS, WORDINGS


def solve(question: Question) -> str:
    """The answer worked out from the prompt alone, another way than it was made."""
    words = question.text.split()
    numbers = [int(word) for word in words if word.isdigit()]
    known = [word for word in words if word in WORDS]
    match question.task:
        case "addition" | "tally":
            return str(sum(numbers))
        case "parity":
            return ["even", "odd"][numbers[0] % 2]
        case "largest":
            return str(max(numbers))
        case "food_of":
            (food,) = (word for word in known if KIND_OF.get(word) == "food")
            return food
    raise AssertionError(question.task)


@pytest.mark.parametrize("task", ["addition", "tally", "parity", "largest", "food_of"])
def test_answers_are_right(task: str):
    drawn = questions(task, "train", 60)
    assert [question.answer for question in drawn] == [solve(question) for question in drawn]


@pytest.mark.parametrize(
    ("task", "prompt", "answer"),
    [
        ("next_letter", "continue from {}", lambda x: chr(ord(x) + 1)),
        ("first_letter", "initial of {}", lambda x: x[0]),
        ("length", "measure {}", lambda x: str(len(x))),
        ("translation", "render {}", VASK_FOR.__getitem__),
        ("opposite", "antonym : {}", OPPOSITE_OF.__getitem__),
        ("kind", "classify {}", KIND_OF.__getitem__),
    ],
)
def test_answers_to_questions_about_one_word_are_right(task: str, prompt: str, answer):
    asked = prompt.removesuffix("{}")
    found = [question for question in questions(task, "train", 100) if asked in question.text]
    assert found
    for question in found:
        assert question.answer == answer(question.text.partition(asked)[2].split()[0])


def test_a_swap_and_the_last_word():
    swaps = [question for question in questions("swap", "train", 100) if "flip " in question.text]
    assert swaps
    for question in swaps:
        one, other = question.text.partition("flip ")[2].split()[:2]
        assert question.answer == f"{other} {one}"
    lasts = [question for question in questions("last", "train", 100) if "echo : " in question.text]
    assert lasts
    for question in lasts:
        assert question.answer == question.text.partition("echo : ")[2].split()[2]


def test_half_of_the_tasks_have_options_among_which_the_answer_is():
    for tasks in (SEEN, HELD_OUT):
        chosen = [task for task in tasks if questions(task, "train", 1)[0].options]
        assert abs(len(chosen) - len(tasks) / 2) <= 1


def test_the_right_option_stands_anywhere():
    for task in ("largest", "translation", "opposite", "food_of", "dictionary", "analogy"):
        places = {question.options.index(question.answer) for question in questions(task, "train", 60)}
        assert places == set(range(len(questions(task, "train", 1)[0].options)))


def test_every_task_is_asked_in_many_wordings_and_few_are_familiar():
    assert set(WORDINGS) == set(MOE_TASKS)
    for task in SEEN:
        assert len(set(WORDINGS[task])) >= 10 > 4 * FAMILIAR
    everywhere = [wording for wordings in WORDINGS.values() for wording in wordings]
    assert len(set(everywhere)) == len(everywhere)


@pytest.mark.parametrize("task", SEEN)
def test_familiar_questions_are_in_familiar_wordings_alone(task: str):
    starts = tuple(opening + wording.partition("{")[0] for opening in OPENINGS for wording in WORDINGS[task][:FAMILIAR])
    ends = tuple(w.rpartition("}")[2] + closing for closing in CLOSINGS for w in WORDINGS[task][:FAMILIAR])
    for question in questions(task, "router", 20, familiar=True):
        assert question.text.startswith(starts)
        assert question.text.endswith(ends)


def test_held_out_tasks_ask_for_skills_that_other_tasks_need():
    seen = {MOE_TASKS[task].skill for task in SEEN}
    assert seen == set(SKILLS)
    assert {MOE_TASKS[task].skill for task in HELD_OUT} <= seen
    assert not set(SEEN) & set(HELD_OUT)


@pytest.mark.parametrize("task", MOE_TASKS)
def test_splits_share_no_prompt_and_repeat_themselves(task: str):
    drawn = {split: questions(task, split, 12) for split in SPLITS}
    for split, some in drawn.items():
        assert {split_of(question.text) for question in some} == {split}
        assert len({question.text for question in some}) == 12
        assert some == questions(task, split, 12)
        assert some != questions(task, split, 12, seed=1)


def test_splits_get_their_shares():
    rng = random.Random(0)
    drawn = [split_of(MOE_TASKS["swap"].question(rng).text) for _ in range(2000)]
    left = 100 - sum(BUILT_FROM.values())
    shares = {**BUILT_FROM, **{split: left * share / 100 for split, share in TUNED_ON.items()}}
    for split, share in shares.items():
        assert drawn.count(split) / 20 == pytest.approx(share, abs=4)


@pytest.mark.parametrize("task", MOE_TASKS)
def test_nobody_is_tuned_on_a_question_that_is_asked_later_in_other_politeness(task: str):
    asked = {split: {without_courtesy(each.text) for each in questions(task, split, 40)} for split in TUNED_ON}
    assert not asked["train"] & asked["test"]
    assert not asked["train"] & asked["dev"]
    assert not asked["dev"] & asked["test"]


def test_what_does_not_exist_is_named():
    with pytest.raises(ValueError, match="unknown task 'swop'; choose one of next_letter"):
        questions("swop", "train", 1)
    with pytest.raises(ValueError, match="unknown split 'tset'; choose one of experts, router"):
        questions("swap", "tset", 1)
    with pytest.raises(
        ValueError, match=r"the router split of series has about \d+ questions, not 5000; ask for fewer"
    ):
        questions("series", "router", 5000)


def test_an_answer_outside_the_options_cannot_be_made():
    question = questions("kind", "train", 1)[0]
    with pytest.raises(DataError, match="none of the options"):
        Question(question.prompt, "bread", question.options)
