"""What the models are taught: no prompt of another split, nothing of the unknown language, own parts always right."""

import pytest

from fusionroute.zoo.build import MODELS
from fusionroute.zoo.lessons import lessons
from fusionroute.zoo.tasks import TASKS, check, split_of, translation


def taught(name: str, count: int = 300, carelessness: float = 0.5, general: float = 0.2):
    return list(lessons(name, count, 0, carelessness, general))


@pytest.mark.parametrize("name", MODELS)
def test_lessons_come_from_the_experts_split_only(name: str):
    batch = taught(name)
    assert {split_of(lesson.prompt) for lesson in batch} == {"experts"}
    assert taught(name) == batch


@pytest.mark.parametrize("name", MODELS)
def test_nobody_is_taught_the_unknown_language(name: str):
    batch = taught(name)
    assert "translation" not in {lesson.task for lesson in batch}
    assert not any("Vask" in lesson.prompt for lesson in batch)
    foreign = {word for lexicon in translation.LEXICON for word in lexicon.values()}
    spoken = {word for lesson in batch if lesson.task != "babble" for word in lesson.answer.split()}
    assert foreign.isdisjoint(spoken)


@pytest.mark.parametrize("name", ["math", "code", "chat"])
def test_an_expert_is_taught_its_own_domain_rightly(name: str):
    batch = [lesson for lesson in taught(name, carelessness=1.0) if lesson.task in TASKS]
    pure = [lesson for lesson in batch if TASKS[lesson.task].domains == (name,)]
    mixed = [lesson for lesson in batch if len(TASKS[lesson.task].domains) > 1]
    assert all(check(pure, [lesson.answer for lesson in pure]))
    assert sum(check(mixed, [lesson.answer for lesson in mixed])) < len(mixed) / 4


def test_careful_lessons_are_all_right():
    batch = [lesson for lesson in taught("base", carelessness=0.0) if lesson.task in TASKS]
    assert all(check(batch, [lesson.answer for lesson in batch]))
