"""Theorem 4.3, executable: choosing among experts can fail although good choices exist.

Expert i always emits token i; the *free* token, the last of the vocabulary, is nobody's. A secret path decides what the
second half of a response earns, and nothing a router may look at depends on it before the first half is written.
Everything is computed by visiting all prefixes; the paper's closed forms are left to the tests.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from fusionroute.errors import SettingsError

Prefix = tuple[int, ...]

MAX_RESPONSES = 2**24  # arrays of one float per response: 128 MiB
ROUNDING = 1e-9  # sums of a few rewards


@dataclass(frozen=True, eq=False)
class TokenTree:
    """All responses of one length, with what they earn; a prefix is the index of its entry.

    ``rewards[t]``: ``[vocabulary] * (t + 1)``, the reward of the newest token of every prefix of length t + 1.
    """

    rewards: tuple[np.ndarray, ...]

    @property
    def horizon(self) -> int:
        return len(self.rewards)

    @property
    def vocabulary(self) -> int:
        return len(self.rewards[0])

    @cached_property
    def q(self) -> tuple[np.ndarray, ...]:
        """Q*, by dynamic programming from the last token back; shapes as `rewards`."""
        levels, following = [], np.zeros(self.rewards[-1].shape)
        for rewards in reversed(self.rewards):
            levels.append(rewards + following)
            following = levels[-1].max(-1)
        return tuple(reversed(levels))

    @property
    def best(self) -> float:
        """V* of the empty prefix."""
        return float(self.q[0].max())


@dataclass(frozen=True)
class Family:
    """One world per secret path, ``experts ** (horizon / 2)`` of them.

    ``epsilon`` is what the best routed response loses, ``delta`` the paper's Δ. At ``epsilon`` 0 condition (9) fails.

    Raises:
        SettingsError: fewer than two experts, an odd horizon, not 0 ≤ epsilon ≤ delta ≤ 1, or too many responses.
    """

    experts: int
    horizon: int
    delta: float = 0.5
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        if self.experts < 2:
            raise SettingsError(f"experts is {self.experts}; with fewer than 2 there is nothing to choose")
        if self.horizon < 2 or self.horizon % 2:
            raise SettingsError(f"horizon is {self.horizon}; give an even number of tokens, 2 or more")
        if not 0 <= self.epsilon <= self.delta <= 1:
            raise SettingsError(f"epsilon {self.epsilon} and delta {self.delta} must keep 0 <= epsilon <= delta <= 1")
        responses = (self.experts + 1) ** self.horizon
        if responses > MAX_RESPONSES:
            raise SettingsError(
                f"{self.experts} experts and {self.horizon} tokens make {responses} responses; "
                f"at most {MAX_RESPONSES} are enumerated: choose a shorter horizon"
            )

    @property
    def half(self) -> int:
        return self.horizon // 2

    @property
    def limit(self) -> float:
        """V* − T/2 + 2 = T/2 + 2: what no routing rule can guarantee. Says nothing (it is V* or more) below T = 6."""
        return self.half + 2

    def secrets(self) -> Iterator[Prefix]:
        return product(range(self.experts), repeat=self.half)

    def trees(self) -> Iterator[TokenTree]:
        """The world of every secret, one at a time: they are large."""
        return (self.tree(secret) for secret in self.secrets())

    def tree(self, secret: Prefix) -> TokenTree:
        return TokenTree(tuple(self._rewards(length, secret) for length in range(1, self.horizon + 1)))

    def _rewards(self, length: int, secret: Prefix) -> np.ndarray:
        """``[vocabulary] * length``; the table's cases from last to first, so the first that applies wins."""
        rewards = np.full((self.experts + 1,) * length, self._off_path(length))
        if length > self.half:
            rewards[secret] = 1.0
        for position in range(length):
            np.moveaxis(rewards, position, 0)[-1] = 1.0  # the free token stands there
        return rewards

    def _off_path(self, length: int) -> float:
        if length == 1:
            return 1 - self.epsilon
        if length <= self.half:
            return 1.0
        return 1 - self.delta if length == self.half + 1 else 0.0


@dataclass(frozen=True)
class Observation:
    """All a router sees: the prefix, Q* of each of its tokens when it was chosen, Q* of every possible next token."""

    prefix: Prefix
    q_along: tuple[float, ...]
    q_next: tuple[float, ...]


def observe(tree: TokenTree, prefix: Prefix) -> Observation:
    along = tuple(float(tree.q[t][prefix[: t + 1]]) for t in range(len(prefix)))
    return Observation(prefix, along, tuple(tree.q[len(prefix)][prefix].tolist()))


Router = Callable[[Observation], Sequence[float]]
"""The chance of every expert, given what is seen; a deterministic rule gives 1 to one of them."""


def choosing(rule: Callable[[Observation], int], experts: int) -> Router:
    """The deterministic router of a rule that names an expert."""

    def route(seen: Observation) -> list[float]:
        chosen = rule(seen)
        return [float(expert == chosen) for expert in range(experts)]

    return route


def routed_value(router: Router, tree: TokenTree, prefix: Prefix = ()) -> float:
    """Expected reward, from ``prefix`` on, of the response in which a router picks who writes each token."""
    if len(prefix) == tree.horizon:
        return 0.0
    total = 0.0
    for token, chance in enumerate(router(observe(tree, prefix))):
        if chance > 0:
            longer = (*prefix, token)
            total += chance * (float(tree.rewards[len(prefix)][longer]) + routed_value(router, tree, longer))
    return total


@dataclass(frozen=True)
class OverSecrets:
    mean: float
    worst: float


def over_secrets(router: Router, trees: Iterable[TokenTree]) -> OverSecrets:
    values = [routed_value(router, tree) for tree in trees]
    return OverSecrets(sum(values) / len(values), min(values))


def path_values(tree: TokenTree, experts: int) -> np.ndarray:
    """What the first half of a routed response is worth: total reward with the best routed second half.

    ``[experts] * (horizon / 2)``, by enumerating all ``experts ** horizon`` routed responses. Until the first half is
    written a router sees the same for every secret, so a deterministic one is a path through this array, the same path
    for every secret, and a random one is a mixture of such paths.
    """
    totals = np.zeros(())
    for rewards in tree.rewards:
        totals = totals[..., None] + rewards[(slice(experts),) * rewards.ndim]
    return totals.max(axis=tuple(range(tree.horizon // 2, tree.horizon)))


def largest_gap(tree: TokenTree, experts: int, *, loss: float) -> float:
    """The most that the best expert's Q* falls short of V*, over prefixes that can still end within ``loss`` of V*.

    ``loss`` 0: along all optimal policies, condition (8); Δ: condition (9); infinite: anywhere, the global coverage of
    Assumption 4.2. Experts are the first tokens of the vocabulary.
    """
    largest, collected = 0.0, np.zeros(())
    for rewards, q in zip(tree.rewards, tree.q, strict=True):
        best = q.max(-1)
        within = collected + best >= tree.best - loss - ROUNDING
        largest = max(largest, float((best - q[..., :experts].max(-1))[within].max(initial=0.0)))
        collected = collected[..., None] + rewards
    return largest
