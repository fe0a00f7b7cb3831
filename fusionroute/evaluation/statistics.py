"""How sure a measured accuracy is: 95 % intervals, standard errors, p-values. Knows nothing about models or tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

Z = 1.959963984540054  # the normal distribution's 97.5 % point
DRAWS = 10_000  # so that p-values reach down to 0.0002, of which a correction for many comparisons leaves something


@dataclass(frozen=True)
class Estimate:
    """A measured value, its 95 % interval, its standard error and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int
    stderr: float


@dataclass(frozen=True)
class Difference(Estimate):
    """An `Estimate` of a difference.

    Attributes:
        p: two-sided: how often resampling gives a difference of the other sign, or none.
    """

    p: float


def wilson(successes: int, n: int) -> Estimate:
    """A proportion with Wilson's score interval, which stays inside [0, 1] and is honest at 0 and at n successes."""
    assert 0 <= successes <= n > 0, f"{successes} successes of {n}"
    share = successes / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z / (1 + Z**2 / n) * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Estimate(share, max(0.0, centre - reach), min(1.0, centre + reach), n, sqrt(share * (1 - share) / n))


def stratified_mean(groups: Sequence[Sequence[float]], *, seed: int = 0) -> Estimate:
    """The mean of the groups' means (each task counts the same), with a percentile bootstrap inside each group.

    A group whose items are all equal adds no width, so small groups of only right or only wrong answers look surer
    than they are.
    """
    return crossed_mean([np.asarray(group, float)[None, :] for group in groups], seed=seed)


def paired_difference(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, seed: int = 0
) -> Difference:
    """``first`` minus ``second`` on the same items in the same groups; resampling items keeps each pair together."""
    differences = [
        np.array([[float(a) - float(b) for a, b in zip(mine, theirs, strict=True)]])
        for mine, theirs in zip(first, second, strict=True)
    ]
    return crossed_difference(differences, seed=seed)


def crossed_mean(groups: Sequence[np.ndarray], *, seed: int = 0) -> Estimate:
    """The mean of the groups' means where every run answered the same items: ``[runs, items]`` per group.

    Runs are resampled together for all groups and items inside each group, so the interval covers both another draw
    of items and another training run. With few runs it is an approximation, and for one run that of the items alone.
    """
    draws = _crossed_draws(groups, seed)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(_mean(groups), float(low), float(high), _items(groups), float(draws.std()))


def crossed_difference(groups: Sequence[np.ndarray], *, seed: int = 0) -> Difference:
    """`crossed_mean` of differences between two methods on the same items, with its p-value.

    The p-value is never below what flipping signs could give: k items that differ have 2**k ways to lie, so the
    smallest is 2 / 2**k. Resampling alone would find a handful of items that agree very sure.
    """
    draws = _crossed_draws(groups, seed)
    low, high = np.percentile(draws, [2.5, 97.5])
    # one more than counted on each side, as for any Monte Carlo test: no sample proves a chance of zero
    least = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    resampled = 2 * (int(least) + 1) / (len(draws) + 1)
    differing = sum(np.count_nonzero(np.mean(group, axis=0)) for group in groups)
    p = float(min(1.0, max(resampled, 2.0 ** (1 - differing))))
    return Difference(_mean(groups), float(low), float(high), _items(groups), float(draws.std()), p)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction: what holds at 0.05 after it holds for the whole family of comparisons, independent or not."""
    adjusted, floor = dict[str, float](), 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = floor
    return {name: adjusted[name] for name in p_values}


def _mean(groups: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.mean(group) for group in groups]))


def _items(groups: Sequence[np.ndarray]) -> int:
    return sum(np.asarray(group).shape[1] for group in groups)


def _crossed_draws(groups: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """``DRAWS`` resampled means of the groups' means."""
    assert groups, "an average needs at least one group"
    assert all(np.asarray(group).size for group in groups), "every group needs an item"
    runs = {len(group) for group in groups}
    assert len(runs) == 1, "every group needs the same runs"
    generator = np.random.default_rng(seed)
    run_weights = _resampling(np.ones(runs.pop(), int), generator)
    return np.mean([_group_draws(np.asarray(group, float), run_weights, generator) for group in groups], axis=0)


def _group_draws(values: np.ndarray, run_weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    # items with the same outcome in every run are interchangeable, so verdicts leave a few kinds of items to draw
    kinds, counts = np.unique(values, axis=1, return_counts=True)
    return np.einsum("dr,rk,dk->d", run_weights, kinds, _resampling(counts, generator), optimize=True)


def _resampling(counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The share of each kind of item in each draw with replacement, ``[DRAWS, kinds]``; rows add up to 1."""
    total = int(counts.sum())
    return generator.multinomial(total, counts / total, size=DRAWS) / total
