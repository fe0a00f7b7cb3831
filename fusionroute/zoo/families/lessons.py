"""What a family is taught: running accounts of the `experts` split, each family its own draws."""

import random
from collections.abc import Iterator

from fusionroute.zoo.families.recipe import Family, FamilyRecipe, Phase
from fusionroute.zoo.tasks import ledger, split_of
from fusionroute.zoo.tasks.names import NAMES
from fusionroute.zoo.tasks.part import Part


def lessons(phase: Phase, family: Family, count: int, rng: random.Random) -> Iterator[Part]:
    """That many accounts, with steps of each kind as often as the family meets them."""
    while count:
        part = ledger.draw(rng, phase.fewest, phase.most, family.kinds)
        if split_of(part.request) == "experts":
            count -= 1
            yield part


def tokenizer_texts(name: str, recipe: FamilyRecipe) -> Iterator[str]:
    """What a tokenizer learns from: accounts in which only some of the names occur, the family's own choice."""
    rng = random.Random(f"tokenizer {name} {recipe.seed}")
    known = rng.sample(NAMES, recipe.families[name].known_names)
    for _ in range(recipe.tokenizer_lessons):
        part = ledger.draw(rng, 1, len(ledger.LETTERS), names=known)
        yield part.request
        yield "\n".join(part.lines)
