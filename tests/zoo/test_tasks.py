"""Generators are deterministic, splits are disjoint, and checkers are exact."""

import itertools
import json
from dataclasses import asdict

import pytest

from fusionroute.zoo.tasks import FAMILY_TASKS, SHARES, TASKS, check, examples, functions, idioms, split_of

SPLITS = tuple(SHARES)
EVERY = (*TASKS, *FAMILY_TASKS)


@pytest.mark.parametrize("task", EVERY)
def test_the_same_seed_gives_the_same_examples(task: str):
    assert examples(task, "train", 20, seed=3) == examples(task, "train", 20, seed=3)
    assert examples(task, "train", 20, seed=3) != examples(task, "train", 20, seed=4)


@pytest.mark.parametrize("task", EVERY)
def test_a_prompt_is_in_one_split_only(task: str):
    prompts = {split: {e.prompt for seed in range(3) for e in examples(task, split, 100, seed)} for split in SPLITS}
    assert all(split_of(prompt) == split for split in SPLITS for prompt in prompts[split])
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(prompts.values(), 2))


@pytest.mark.parametrize("task", EVERY)
def test_no_example_comes_twice(task: str):
    assert len({example.prompt for example in examples(task, "test", 100)}) == 100


def test_tasks_of_the_families_are_kept_apart():
    """They are not among the tasks that teams are trained and compared on."""
    assert set(FAMILY_TASKS).isdisjoint(TASKS)
    assert all(task.domains == ("ledger",) for task in FAMILY_TASKS.values())


def test_shares_are_percentages():
    assert sum(SHARES.values()) == 100


@pytest.mark.parametrize("task", EVERY)
def test_reference_answers_pass_and_damaged_ones_fail(task: str):
    batch = examples(task, "test", 40)
    assert all(check(batch, [example.answer for example in batch]))
    assert not any(check(batch, ["" for _ in batch]))
    for cut in (1, 2):
        assert not any(check(batch, [example.answer[:-cut] for example in batch]))


@pytest.mark.parametrize("task", EVERY)
def test_an_example_can_be_written_as_json(task: str):
    (example,) = examples(task, "test", 1)
    assert json.loads(json.dumps(asdict(example))) == asdict(example)


def test_each_part_of_a_mixed_answer_is_checked():
    (example,) = examples("all_three", "test", 1)
    lines = example.answer.split("\n")
    for number in range(1, len(lines)):
        assert check([example], ["\n".join(lines[:number] + lines[number + 1 :])]) == [False]


def test_a_wrong_number_fails():
    (example,) = examples("sums", "test", 1)
    number = example.requirement["number"]
    answers = [f"#### {number}", f"#### {number}0", f"#### {number}\n#### {number}"]
    assert check([example] * 3, answers) == [True, False, False]


def test_any_two_of_the_words_will_do():
    pick = next(example for example in examples("words", "test", 200) if "pick" in example.requirement)
    (first, second, third), separator = pick.requirement["pick"]["of"], pick.requirement["pick"]["separator"]
    answers = [f"{third}{separator}{first}", f"{second}{separator}{third}", f"{first}{separator}{first}", first]
    assert check([pick] * 4, answers) == [True, True, False, False]


@pytest.mark.parametrize("kind", functions.KINDS, ids=lambda kind: kind.noun)
def test_the_inputs_tell_all_idioms_apart(kind: functions.Kind):
    def outcome(expression: str) -> str:
        return repr([eval(expression, {"x": x}) for x in kind.inputs])

    outcomes = [outcome(expression) for expression in kind.final.values()]
    assert len(set(outcomes)) == len(outcomes)


def test_idioms_are_phrased_differently():
    phrases = [*idioms.LIST_TO_LIST, *idioms.LIST_TO_VALUE, *idioms.TEXT_TO_TEXT, *idioms.TEXT_TO_VALUE]
    assert len(phrases) == len(set(phrases))


def test_a_split_that_is_too_small_is_said_to_be():
    with pytest.raises(ValueError, match="test split of translation has about 3"):
        examples("translation", "test", 2000)


def test_unknown_names_are_refused_with_the_allowed_ones():
    with pytest.raises(ValueError, match="unknown task 'sum'; choose one of sums"):
        examples("sum", "test", 1)
    with pytest.raises(ValueError, match="unknown split 'dev'; choose one of experts"):
        examples("sums", "dev", 1)
    with pytest.raises(ValueError, match="1 examples and 2 answers"):
        check(examples("sums", "test", 1), ["a", "b"])
