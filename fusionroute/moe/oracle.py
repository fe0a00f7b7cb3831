"""What descent finds on the last prompt token with the label known, over sets of questions, beside one told a lie.

No method, and no bound on gates that are trained, which route every token. An oracle with a large reach fits any label,
so what it reaches with wrong ones says how much its figure means.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusionroute.errors import DataError
from fusionroute.models.gates import Gates
from fusionroute.moe.asking import Asked, Said, ask
from fusionroute.moe.optimise import Descent, oracle_routing
from fusionroute.moe.questions.questions import Encoded
from fusionroute.progress import Progress, Silent


@dataclass(frozen=True)
class Oracle:
    """What Eq. (1) found for n questions.

    Attributes:
        routing: ``[n, L, E]``, of the last prompt token.
        descent: how it was found; an oracle's figure means nothing without it.
        before, after: what the model says of the right answers under its own routing, and under this one.
    """

    routing: Tensor
    descent: Descent
    before: Said
    after: Said


@dataclass(frozen=True)
class Shuffled:
    """The control: the same descent, told that a wrong answer is the right one.

    Attributes:
        before: bool ``[n]``, the wrong answer was the model's already, under its own routing.
        reached: bool ``[n]``, the wrong answer has become the model's.
        right: bool ``[n]``, the right answer is the model's all the same.
    """

    before: Tensor
    reached: Tensor
    right: Tensor


def oracle(
    gates: Gates,
    encoded: Sequence[Encoded],
    how: Descent | None = None,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Oracle:
    """The best routing of each question, found on its true label: what descent finds, and no method.

    It moves the last prompt token alone, so that it bounds no method that moves others too.

    Raises:
        ModelOutputError: see `descend`.
    """
    how = how or Descent()
    routing = best_routing(gates, encoded, how, batch_size=batch_size, progress=progress)
    before = ask(gates, encoded, batch_size=batch_size)
    return Oracle(routing, how, before, ask(gates, encoded, batch_size=batch_size, routing=routing))


def shuffled_oracle(
    gates: Gates,
    encoded: Sequence[Encoded],
    how: Descent | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Shuffled:
    """The same for `mislabelled` questions. Raises as `mislabelled` and `descend` do."""
    aims = mislabelled(encoded, seed)
    routing = best_routing(gates, aims, how or Descent(), batch_size=batch_size, progress=progress)
    before = ask(gates, aims, batch_size=batch_size).correct
    reached, right = (ask(gates, each, batch_size=batch_size, routing=routing).correct for each in (aims, encoded))
    return Shuffled(before, reached, right)


def best_routing(
    gates: Gates,
    encoded: Sequence[Encoded],
    how: Descent,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Tensor:
    """`oracle_routing` of all questions ``[n, L, E]``, on the CPU; in batches of like length."""
    progress = progress or Silent()
    progress.start("search the best routing", len(encoded))
    # The longest first: if a batch does not fit in memory, it shows at once
    order = sorted(range(len(encoded)), key=lambda at: -encoded[at].longest)
    found: list[Tensor] = [torch.empty(0)] * len(encoded)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        asked = Asked(gates, [encoded[row] for row in rows])
        for row, routing in zip(rows, oracle_routing(asked, how).cpu(), strict=True):
            found[row] = routing
        progress.advance(len(rows))
    progress.finish(f"best routing of {len(encoded):,} questions, {how.steps} steps each")
    return torch.stack(found)


def mislabelled(encoded: Sequence[Encoded], seed: int) -> list[Encoded]:
    """Each question with a wrong answer as its label: another option, or where it has none another question's answer.

    Raises:
        DataError: a free answer that all other questions share.
    """
    dice = random.Random(seed)
    free = [each.answers for each in encoded if len(each.answers) == 1]
    if free and all(answers == free[0] for answers in free):
        raise DataError(
            "wrong labels for free answers are taken from other questions, but all have the same answer; give more"
        )
    return [_mislabelled(each, free, dice) for each in encoded]


def _mislabelled(question: Encoded, free: Sequence[tuple[list[int], ...]], dice: random.Random) -> Encoded:
    if len(question.answers) > 1:
        wrong = dice.randrange(len(question.answers) - 1)
        return replace(question, right=wrong + (wrong >= question.right))
    answers = question.answers
    while answers == question.answers:
        answers = dice.choice(free)
    return replace(question, answers=answers)
