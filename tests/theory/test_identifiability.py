"""Theorem 4.3 by enumeration: every prefix, every secret, and every deterministic router where they can be listed."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from fusionroute.errors import SettingsError
from fusionroute.theory.identifiability import (
    Family,
    Observation,
    Prefix,
    Router,
    choosing,
    largest_gap,
    observe,
    over_secrets,
    path_values,
    routed_value,
)

FAMILIES = [Family(2, 4), Family(3, 4), Family(2, 6), Family(3, 6), Family(2, 6, delta=1.0, epsilon=1.0)]
CLOSE = {"abs": 1e-12}


def printed_reward(family: Family, secret: Prefix, prefix: Prefix) -> float:
    """The table of the construction, case by case."""
    length, half = len(prefix), family.horizon // 2
    if family.experts in prefix:
        return 1.0
    if length == 1:
        return 1 - family.epsilon
    if length <= half or prefix[:half] == secret:
        return 1.0
    return 1 - family.delta if length == half + 1 else 0.0


def mean_by_hand(family: Family) -> float:
    share = family.experts**-family.half
    off_path = family.horizon / 2 + 1 - family.delta - family.epsilon
    return share * (family.horizon - family.epsilon) + (1 - share) * off_path


def prefixes(tokens: int, length: int) -> Iterator[Prefix]:
    return product(range(tokens), repeat=length)


@pytest.mark.parametrize("family", FAMILIES[:3], ids=str)
def test_rewards_are_those_of_the_table(family: Family) -> None:
    for secret, tree in zip(family.secrets(), family.trees(), strict=True):
        for length in range(1, family.horizon + 1):
            for prefix in prefixes(family.experts + 1, length):
                assert tree.rewards[length - 1][prefix] == printed_reward(family, secret, prefix), (secret, prefix)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_v_star_is_what_is_left_and_q_star_is_reward_plus_t_minus_t_minus_1(family: Family) -> None:
    """The paper's appendix prints T − t + 1 in (11) and (12)."""
    for tree in family.trees():
        assert tree.best == pytest.approx(family.horizon)
        for t, (rewards, q) in enumerate(zip(tree.rewards, tree.q, strict=True)):
            np.testing.assert_allclose(q.max(-1), family.horizon - t, atol=1e-12)
            np.testing.assert_allclose(q, rewards + family.horizon - t - 1, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_routed_response_earns_one_of_two_totals(family: Family) -> None:
    """Whatever is chosen after the first half."""
    off_path = family.horizon / 2 + 1 - family.delta - family.epsilon
    for secret, tree in zip(family.secrets(), family.trees(), strict=True):
        expected = np.full((family.experts,) * family.half, off_path)
        expected[secret] = family.horizon - family.epsilon
        np.testing.assert_allclose(path_values(tree, family.experts), expected, atol=1e-12)
        for response in prefixes(family.experts, family.horizon):
            total = sum(float(tree.rewards[t][response[: t + 1]]) for t in range(family.horizon))
            assert total == pytest.approx(expected[response[: family.half]], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_secrets_look_alike_until_the_first_half_is_written(family: Family) -> None:
    trees = list(family.trees())
    for length in range(family.half):
        for prefix in prefixes(family.experts + 1, length):
            assert len({observe(tree, prefix) for tree in trees}) == 1, prefix
    for prefix in prefixes(family.experts, family.half):  # now two kinds: this is the secret, or it is not
        assert len({observe(tree, prefix) for tree in trees}) == 2, prefix


def test_an_observation_by_hand() -> None:
    tree = Family(2, 4).tree((0, 1))
    assert observe(tree, (0, 0)) == Observation((0, 0), (3.9, 3.0), (1.5, 1.5, 2.0))
    assert observe(tree, (0, 1)) == Observation((0, 1), (3.9, 3.0), (2.0, 2.0, 2.0))
    assert observe(tree, (0, 0, 1)).q_next == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_premises_hold_for_every_secret(family: Family) -> None:
    for tree in family.trees():
        assert tree.best - path_values(tree, family.experts).max() == pytest.approx(family.epsilon)  # (7)
        assert largest_gap(tree, family.experts, loss=0) == pytest.approx(family.epsilon)  # (8)
        assert largest_gap(tree, family.experts, loss=family.delta) == pytest.approx(family.delta)  # (9)
        assert largest_gap(tree, family.experts, loss=np.inf) == pytest.approx(1)  # no global coverage


@pytest.mark.parametrize(("experts", "horizon"), [(2, 6), (3, 6)])
def test_without_epsilon_the_third_premise_fails(experts: int, horizon: int) -> None:
    family = Family(experts, horizon, epsilon=0.0)
    for tree in family.trees():
        assert largest_gap(tree, experts, loss=0) == family.delta  # every first half is now optimal: (8) still holds
        assert largest_gap(tree, experts, loss=family.delta) == 1 > family.delta


REFERENCE = [(2, 6, 3.7125), (3, 6, 3.4926), (2, 8, 4.61875)]


@pytest.mark.parametrize(("experts", "horizon", "mean"), REFERENCE)
def test_every_path_has_the_reference_mean(experts: int, horizon: int, mean: float) -> None:
    family = Family(experts, horizon)
    values = np.stack([path_values(tree, experts) for tree in family.trees()])
    np.testing.assert_allclose(values.mean(0), mean_by_hand(family), atol=1e-12)
    assert mean_by_hand(family) == pytest.approx(mean, abs=5e-5)
    np.testing.assert_allclose(values.min(0), horizon / 2 + 0.4, atol=1e-12)
    assert values.mean() < family.limit < horizon


def test_every_deterministic_router_of_the_smallest_family() -> None:
    """All 2^7 rules for the seven prefixes of the first half; afterwards, when it is too late, the best next token."""
    family = Family(2, 6)
    trees, seen = list(family.trees()), [prefix for t in range(3) for prefix in prefixes(2, t)]
    for choices in product(range(2), repeat=len(seen)):
        rule = dict(zip(seen, choices, strict=True))
        router = choosing(lambda now, rule=rule: rule.get(now.prefix, int(np.argmax(now.q_next[:2]))), experts=2)
        found = over_secrets(router, trees)
        assert (found.mean, found.worst) == (pytest.approx(3.7125, **CLOSE), pytest.approx(3.4, **CLOSE))


def test_the_ideal_router_of_assumption_4_2_is_no_better() -> None:
    """It picks the expert of the largest Q*: without global coverage that does not help."""
    found = over_secrets(choosing(lambda seen: int(np.argmax(seen.q_next[:3])), experts=3), Family(3, 6).trees())
    assert (found.mean, found.worst) == (pytest.approx(mean_by_hand(Family(3, 6))), pytest.approx(3.4))


def random_router(experts: int, seed: int) -> Router:
    """Other chances for every prefix, and for every observation of it."""
    generator, chances = np.random.default_rng(seed), {}

    def route(seen: Observation) -> list[float]:
        return chances.setdefault(seen, generator.dirichlet(np.ones(experts)).tolist())

    return route


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("experts", "horizon"), [(2, 6), (3, 4)])
def test_random_routers_have_the_same_mean(experts: int, horizon: int, seed: int) -> None:
    family = Family(experts, horizon)
    found = over_secrets(random_router(experts, seed), list(family.trees()))
    assert found.mean == pytest.approx(mean_by_hand(family), **CLOSE)
    assert found.worst < found.mean


def test_tossing_a_coin_gives_every_secret_the_mean() -> None:
    """So the mean is also the best guarantee that a random router can give."""
    for tree in Family(2, 6).trees():
        assert routed_value(lambda seen: [0.5, 0.5], tree) == pytest.approx(3.7125, **CLOSE)


def test_at_four_tokens_the_theorem_says_nothing() -> None:
    assert Family(2, 4).limit == Family(2, 4).tree((0, 0)).best == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 1, "horizon": 6}, "experts is 1"),
        ({"experts": 2, "horizon": 5}, "horizon is 5; give an even number"),
        ({"experts": 2, "horizon": 6, "epsilon": 0.6}, "0 <= epsilon <= delta <= 1"),
        ({"experts": 2, "horizon": 6, "delta": 1.5}, "0 <= epsilon <= delta <= 1"),
        ({"experts": 3, "horizon": 14}, "make 268435456 responses"),
    ],
)
def test_impossible_families_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Family(**settings)
