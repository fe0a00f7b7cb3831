"""The recovery bound (6) by enumeration, what it needs, and how tight it is."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from fusionroute.errors import SettingsError
from fusionroute.ops import fusion
from fusionroute.theory.identifiability import Family, TokenTree
from fusionroute.theory.recovery import (
    Policy,
    favouring_router,
    free_policy,
    fuse,
    greedy,
    needle_tree,
    noisy_router,
    random_expert,
    random_tree,
    reach,
    recover,
    soften,
    softened_experts,
    threshold,
    total_variation,
    value,
)

SHAPES = list(product((2, 3), (1, 2, 4)))  # vocabulary, horizon


def random_policy(generator: np.random.Generator, tree: TokenTree) -> Policy:
    return [generator.dirichlet(np.ones(tree.vocabulary), level.shape[:-1]) for level in tree.rewards]


def q_under(tree: TokenTree, policy: Policy) -> list[np.ndarray]:
    levels: list[np.ndarray] = []
    following: np.ndarray | float = 0.0
    for rewards, chances in zip(reversed(tree.rewards), reversed(policy), strict=True):
        levels.insert(0, rewards + following)
        following = (chances * levels[0]).sum(-1)
    return levels


@pytest.mark.parametrize(("vocabulary", "horizon"), SHAPES)
def test_value_is_the_mean_over_all_responses(vocabulary: int, horizon: int) -> None:
    generator = np.random.default_rng(0)
    tree = random_tree(generator, vocabulary, horizon)
    policy = random_policy(generator, tree)
    expected = 0.0
    for response in product(range(vocabulary), repeat=horizon):
        starts = [response[: t + 1] for t in range(horizon)]
        chance = math.prod(float(level[start]) for level, start in zip(policy, starts, strict=True))
        expected += chance * sum(float(level[start]) for level, start in zip(tree.rewards, starts, strict=True))
    assert value(tree, policy) == pytest.approx(expected)
    assert value(tree, greedy(tree.q)) == pytest.approx(tree.best)
    assert [float(level.sum()) for level in reach(policy)] == pytest.approx([1.0] * horizon)


@pytest.mark.parametrize(("vocabulary", "horizon"), SHAPES)
def test_the_performance_difference_lemma_both_ways(vocabulary: int, horizon: int) -> None:
    """Lemma 4.1 walks along π and judges by Q*; the bound needs its mirror image: along π*, judged by Q^π."""
    generator = np.random.default_rng(1)
    tree = random_tree(generator, vocabulary, horizon)
    policy, optimum = random_policy(generator, tree), greedy(tree.q)
    gap = value(tree, optimum) - value(tree, policy)
    for walked, judge in ((policy, tree.q), (optimum, q_under(tree, policy))):
        lost = [
            (seen * ((best - chances) * q).sum(-1)).sum()
            for seen, best, chances, q in zip(reach(walked), optimum, policy, judge, strict=True)
        ]
        assert sum(lost) == pytest.approx(gap)


@pytest.mark.parametrize("strength", [0.0, 2.0, 5.0, 9.0])
@pytest.mark.parametrize(("vocabulary", "horizon"), SHAPES)
def test_the_bound_holds_on_random_trees(vocabulary: int, horizon: int, strength: float) -> None:
    for seed in range(10):
        generator = np.random.default_rng([seed, vocabulary, horizon])
        tree = random_tree(generator, vocabulary, horizon)
        optimum = greedy(tree.q)
        router = noisy_router(generator, optimum, strength)
        fused = [fuse(random_expert(generator, tree, 0.2), router) for _ in range(3)]
        found = recover(tree, optimum, fused)
        assert 0 < found.gap <= found.bound


def test_nothing_is_asked_off_the_optimal_path() -> None:
    """A policy that is near π* on its prefixes and as bad as can be on all others keeps the bound."""
    for seed in range(20):
        tree = random_tree(np.random.default_rng(seed), 3, 4)
        optimum, worst = greedy(tree.q), greedy([-level for level in tree.q])
        policy = [
            np.where((seen > 0)[..., None], 0.9 * best + 0.1 * bad, bad)
            for seen, best, bad in zip(reach(optimum), optimum, worst, strict=True)
        ]
        found = recover(tree, optimum, [policy])
        assert found.distance == pytest.approx(0.1)
        assert value(tree, policy) == pytest.approx(tree.best - found.gap)
        assert 0 < found.gap <= found.bound


@pytest.mark.parametrize(("vocabulary", "horizon"), [(2, 1), (3, 6)])
def test_no_smaller_constant_would_do(vocabulary: int, horizon: int) -> None:
    """On the needle the loss is 1 − (1 − Δ)^T, the bound T Δ: equal at T = 1 and, for small Δ, at any T."""
    tree, distance = needle_tree(vocabulary, horizon), 1e-4
    policy = [soften(np.zeros(level.shape[:-1], int), vocabulary, distance) for level in tree.rewards]
    found = recover(tree, greedy(tree.q), [policy])
    assert found.gap == pytest.approx(1 - (1 - distance) ** horizon)
    assert found.bound == pytest.approx(horizon * distance)
    assert found.distance == pytest.approx(distance)
    assert found.gap / found.bound > 0.999


def test_without_normalising_the_bound_fails() -> None:
    """The printed sum of log-probabilities is no distribution: literally, it looks nearer than it is, up to twice."""
    tree, expert, router = needle_tree(3, 1), np.array([0.1, 0.8, 0.1]), np.array([0.1, 0.1, 0.8])
    optimum = greedy(tree.q)
    printed = float(total_variation(expert * router, optimum[0]))
    found = recover(tree, optimum, [fuse([expert], [router])])
    assert printed == pytest.approx((0.99 + 0.08 + 0.08) / 2)
    assert found.gap == found.bound == pytest.approx(1 - 0.01 / 0.17)
    assert found.gap > 1.6 * printed  # the bound would be `printed`: T = Q_max = 1


def test_at_every_prefix_the_nearest_expert_is_used() -> None:
    """Each of two experts is right at one of the two steps: together they are π*."""
    tree = needle_tree(2, 2)
    optimum = greedy(tree.q)
    right, wrong = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    first = [right, np.stack([wrong, wrong])]
    second = [wrong, np.stack([right, right])]
    assert recover(tree, optimum, [first]).gap == 1
    together = recover(tree, optimum, [first, second])
    assert (together.gap, together.bound, together.distance) == (0, 0, 0)


def test_fusing_is_equation_1() -> None:
    generator = np.random.default_rng(2)
    tree = random_tree(generator, 3, 3)
    expert, router = random_policy(generator, tree), random_policy(generator, tree)
    for one, other, fused in zip(expert, router, fuse(expert, router), strict=True):
        used = fusion.fuse(torch.from_numpy(np.log(other)), torch.from_numpy(np.log(one))).exp()
        np.testing.assert_allclose(fused, used.numpy(), rtol=1e-5)


def test_softening_by_hand() -> None:
    expected = [[0.05, 0.9, 0.05], [0.9, 0.05, 0.05]]
    np.testing.assert_allclose(soften(np.array([1, 0]), 3, 0.1), expected)
    first, second = softened_experts(Family(2, 4), 0.1)
    np.testing.assert_allclose(first[0], [0.9, 0.05, 0.05])
    np.testing.assert_allclose(second[3][1, 2, 0], [0.05, 0.9, 0.05])


@pytest.mark.parametrize("experts", [2, 3])
def test_above_the_threshold_greedy_decoding_finds_the_free_token(experts: int) -> None:
    family, eta = Family(experts, 4), 0.1
    edge = threshold(experts, eta)
    assert edge == pytest.approx({2: 2.8903717578961645, 3: 3.295836866004329}[experts])  # log 18 and log 27
    free = np.full((experts + 1,) * 3, experts)
    for own, expert in enumerate(softened_experts(family, eta)):
        below, above = (greedy(fuse(expert, favouring_router(family, edge + step))) for step in (-1e-9, 1e-9))
        assert (below[3].argmax(-1) == own).all()
        assert (above[3].argmax(-1) == free).all()
        for tree in family.trees():
            assert value(tree, above) == family.horizon
            assert value(tree, below) < family.horizon


def test_the_demo_keeps_the_bound_for_every_margin_and_secret() -> None:
    family = Family(2, 6)
    for margin, distance in ((0.0, 0.95), (4.0, 0.95 / (0.95 + 0.05 * math.exp(4)))):
        fused = [fuse(expert, favouring_router(family, margin)) for expert in softened_experts(family, 0.1)]
        for tree in family.trees():
            found = recover(tree, free_policy(family), fused)
            assert found.distance == pytest.approx(distance)
            assert found.bound == pytest.approx(36 * distance)
            assert found.gap <= found.bound


@pytest.mark.parametrize("eta", [0.0, 2 / 3, 1.0, -0.1])
def test_experts_that_drop_their_own_token_are_refused(eta: float) -> None:
    with pytest.raises(SettingsError, match="eta is"):
        softened_experts(Family(2, 4), eta)
    with pytest.raises(SettingsError, match="below experts"):
        threshold(2, eta)
