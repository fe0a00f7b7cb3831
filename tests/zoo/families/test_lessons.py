"""What the families are taught: right accounts of one split, some kinds of steps seldom, some names known."""

import random

import pytest

from fusionroute.zoo.families import FAMILIES
from fusionroute.zoo.families.lessons import lessons, tokenizer_texts
from fusionroute.zoo.families.recipe import Family, FamilyRecipe, Phase
from fusionroute.zoo.tasks import Example, check, split_of
from fusionroute.zoo.tasks.names import NAMES


def taught(family: Family, count: int = 200):
    return list(lessons(Phase(batches=1, fewest=1, most=10), family, count, random.Random(0)))


@pytest.mark.parametrize("name", FAMILIES)
def test_lessons_are_right_and_of_the_experts_split(name: str):
    batch = taught(FamilyRecipe().families[name])
    assert len(batch) == 200
    assert {split_of(part.request) for part in batch} == {"experts"}
    asked = [Example("ledger", part.request, "\n".join(part.lines), part.requirement) for part in batch]
    assert all(check(asked, [example.answer for example in asked]))


def test_kinds_come_as_often_as_the_family_meets_them():
    without = taught(Family(known_names=1, kinds={"gain": 1.0, "loss": 1.0, "same": 0.0, "double": 0.0}))
    assert not any("as many as" in part.request or "doubles" in part.request for part in without)
    assert any("as many as" in part.request for part in taught(Family(known_names=1)))


def test_a_tokenizer_learns_from_some_of_the_names_only():
    recipe = FamilyRecipe(families={"byte_bpe": Family(known_names=20)})
    text = " ".join(tokenizer_texts("byte_bpe", recipe))
    assert sum(name in text.replace(".", " ").replace(",", " ").split() for name in NAMES) == 20


def test_tokenizers_of_different_families_learn_other_names():
    texts = [next(tokenizer_texts(name, FamilyRecipe())) for name in FAMILIES]
    assert len(set(texts)) == 3
