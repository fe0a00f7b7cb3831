"""The oracle on a real tiny model: it lowers its loss, and told a lie it serves the lie."""

import pytest
import torch

import tiny_moe
import tiny_rerouting
from fusionroute.errors import DataError
from fusionroute.models.gates import Gates
from fusionroute.moe.asking import Asked, ask
from fusionroute.moe.optimise import Descent, oracle_routing
from fusionroute.moe.oracle import mislabelled, oracle, shuffled_oracle
from fusionroute.moe.questions.questions import Encoded

HOW = Descent(steps=8, learning_rate=0.1)
COUNT = 12


@pytest.fixture(scope="module")
def gates() -> Gates:
    return Gates(tiny_moe.mixture("olmoe"), "all")


def test_no_loss_rises_and_most_fall(gates: Gates) -> None:
    encoded = tiny_rerouting.encoded(COUNT, words=tiny_rerouting.LETTERS)
    found = oracle(gates, encoded, HOW, batch_size=5)
    assert bool((found.after.loss <= found.before.loss + 1e-5).all())
    assert int((found.after.loss < found.before.loss - 0.01).sum()) > COUNT / 2
    assert int(found.after.correct.sum()) > int(found.before.correct.sum())
    assert found.descent == HOW
    torch.testing.assert_close(found.routing.sum(-1), torch.ones(COUNT, 4))


def test_a_hasty_descent_raises_no_loss_either(gates: Gates) -> None:
    """Steps of 1 throw every weight about, so most of what is tried is worse than the start."""
    asked = Asked(gates, tiny_rerouting.encoded(6, 3))
    with torch.no_grad():
        before = asked.say(only_right=True).loss
        after = asked.say(oracle_routing(asked, Descent(steps=3, learning_rate=1.0)), only_right=True).loss
    assert bool((after <= before + 1e-5).all())


def test_batches_do_not_matter(gates: Gates) -> None:
    encoded = tiny_rerouting.encoded(5, 4)
    how = Descent(steps=3)
    together, alone = (oracle(gates, encoded, how, batch_size=size).routing for size in (5, 1))
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)


def test_the_lie_is_reached_more_often_than_before(gates: Gates) -> None:
    encoded = tiny_rerouting.encoded(COUNT, words=tiny_rerouting.LETTERS)
    aims = mislabelled(encoded, seed=3)
    found = shuffled_oracle(gates, encoded, HOW, seed=3)
    assert torch.equal(found.before, ask(gates, aims).correct)
    assert int(found.reached.sum()) > int(found.before.sum())
    assert not bool((found.reached & found.right).any()), "only one option is the likeliest"
    assert int(found.right.sum()) < int(oracle(gates, encoded, HOW).after.correct.sum())


def test_wrong_labels_are_other_options_of_the_question() -> None:
    encoded = tiny_rerouting.encoded(200)
    aims = mislabelled(encoded, seed=0)
    assert all(aim.right != each.right and aim.answers == each.answers for aim, each in zip(aims, encoded, strict=True))
    shifts = {(aim.right - each.right) % 3 for aim, each in zip(aims, encoded, strict=True)}
    assert shifts == {1, 2}
    assert mislabelled(encoded, seed=0) == aims != mislabelled(encoded, seed=1)


def test_wrong_labels_of_free_answers_are_answers_to_other_questions() -> None:
    free = [Encoded([7, 8], ([9 + at, 2],), 0) for at in range(3)]
    aims = mislabelled([*free, *tiny_rerouting.encoded(2)], seed=0)
    for aim, each in zip(aims[:3], free, strict=True):
        assert aim.answers != each.answers
        assert aim.answers in [other.answers for other in free]


def test_one_answer_to_everything_leaves_no_wrong_one() -> None:
    with pytest.raises(DataError, match="all have the same answer"):
        mislabelled([Encoded([7], ([9, 2],), 0), Encoded([8], ([9, 2],), 0)], seed=0)
