"""The recovery bound (6), executable: adding the router's log-probabilities can reach what routing cannot.

If, on prefixes of an optimal policy, some fused expert is close to it (Δ, in total variation), then using that expert
costs at most T · Q_max · Δ. Both sides are computed exactly on trees of tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusionroute.errors import SettingsError
from fusionroute.theory.identifiability import Family, TokenTree

Policy = Sequence[np.ndarray]
"""Level t: ``[vocabulary] * (t + 1)``, the chances of the next token after every prefix of length t."""


@dataclass(frozen=True)
class Recovery:
    """Both sides of (6): ``gap`` = V* − V^π, ``bound`` = T · Q_max · ``distance``."""

    gap: float
    bound: float
    distance: float  # Δ: total variation to the optimal policy, a mean over the positions of its own responses


def recover(tree: TokenTree, optimum: Policy, fused: Sequence[Policy]) -> Recovery:
    """Use at every prefix the fused expert nearest to ``optimum``, and measure what that costs.

    Q_max is the largest Q* of the tree. Δ is the mean over positions: the bound sums over them, so (6), which asks for
    Δ at each, follows.
    """
    stacked = [np.stack(level) for level in zip(*fused, strict=True)]
    distances = [total_variation(level, wanted) for level, wanted in zip(stacked, optimum, strict=True)]
    used = [_pick(level, distance.argmin(0)) for level, distance in zip(stacked, distances, strict=True)]
    total = sum(float((seen * away.min(0)).sum()) for seen, away in zip(reach(optimum), distances, strict=True))
    q_max = max(float(level.max()) for level in tree.q)
    return Recovery(value(tree, optimum) - value(tree, used), q_max * total, total / tree.horizon)


def total_variation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Half the L1 distance over the last axis: between 0 and 1 for distributions."""
    return np.abs(first - second).sum(-1) / 2


def _pick(stacked: np.ndarray, expert: np.ndarray) -> np.ndarray:
    """``[experts, prefix..., vocabulary]`` and ``[prefix...]`` to the picked expert's ``[prefix..., vocabulary]``."""
    return np.take_along_axis(stacked, expert[None, ..., None], axis=0)[0]


def value(tree: TokenTree, policy: Policy) -> float:
    """Expected total reward of a response drawn from ``policy``."""
    following = np.zeros(tree.rewards[-1].shape)
    for rewards, chances in zip(reversed(tree.rewards), reversed(policy), strict=True):
        following = (chances * (rewards + following)).sum(-1)
    return float(following)


def reach(policy: Policy) -> list[np.ndarray]:
    """Level t: ``[vocabulary] * t``, how likely ``policy`` is to come by every prefix of length t."""
    levels = [np.ones(())]
    for chances in policy[:-1]:
        levels.append(levels[-1][..., None] * chances)
    return levels


def fuse(expert: Policy, router: Policy) -> Policy:
    """Eq. (1): log π' = log π_expert + log π_router, normalised: without that (6) does not hold."""
    products = [one * other for one, other in zip(expert, router, strict=True)]
    return [level / level.sum(-1, keepdims=True) for level in products]


def greedy(scores: Sequence[np.ndarray]) -> Policy:
    """Always the token of the largest score, the lowest id among equals. Of Q* it is an optimal policy."""
    return [np.eye(level.shape[-1])[level.argmax(-1)] for level in scores]


def soften(own: np.ndarray, vocabulary: int, eta: float) -> np.ndarray:
    """``[...]`` token ids to ``[..., vocabulary]``: 1 − eta on that token, the rest in equal parts on the others."""
    return np.where(np.eye(vocabulary)[own] == 1, 1 - eta, eta / (vocabulary - 1))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def random_tree(generator: np.random.Generator, vocabulary: int, horizon: int) -> TokenTree:
    """Rewards uniform in [0, 1], each prefix its own."""
    return TokenTree(tuple(generator.random((vocabulary,) * length) for length in range(1, horizon + 1)))


def needle_tree(vocabulary: int, horizon: int) -> TokenTree:
    """Reward 1 for the response of zeros alone, paid at its end: here (6) is nearly an equality, for small Δ."""
    rewards = [np.zeros((vocabulary,) * length) for length in range(1, horizon + 1)]
    rewards[-1][(0,) * horizon] = 1.0
    return TokenTree(tuple(rewards))


def random_expert(generator: np.random.Generator, tree: TokenTree, eta: float) -> Policy:
    """A softened expert that prefers a random token after every prefix."""
    drawn = [generator.integers(tree.vocabulary, size=level.shape[:-1]) for level in tree.rewards]
    return [soften(own, tree.vocabulary, eta) for own in drawn]


def noisy_router(generator: np.random.Generator, optimum: Policy, strength: float) -> Policy:
    """Complementary logits: ``strength`` nats on the optimal token, over noise of one nat on every token."""
    return [softmax(strength * level + generator.standard_normal(level.shape)) for level in optimum]


# The demo: the worlds of Theorem 4.3, where no expert ever says the free token and the router may.


def free_policy(family: Family) -> Policy:
    """The free token from the first to the last: optimal for every secret."""
    return _everywhere(family, np.eye(family.experts + 1)[-1])


def softened_experts(family: Family, eta: float) -> list[Policy]:
    """Expert i: 1 − eta on token i, eta / experts on each of the others, the free one among them.

    Raises:
        SettingsError: eta is not between 0 and experts / (experts + 1), where an expert would drop its own token.
    """
    _check_eta(family.experts, eta)
    own = soften(np.arange(family.experts), family.experts + 1, eta)
    return [_everywhere(family, chances) for chances in own]


def favouring_router(family: Family, margin: float) -> Policy:
    """Prefers the free token by ``margin`` nats over each expert's token."""
    return _everywhere(family, softmax(margin * np.eye(family.experts + 1)[-1]))


def threshold(experts: int, eta: float) -> float:
    """The margin, in nats, above which greedy decoding of the fused distribution says the free token.

    Raises:
        SettingsError: as `softened_experts`.
    """
    _check_eta(experts, eta)
    return math.log((1 - eta) / (eta / experts))


def _everywhere(family: Family, chances: np.ndarray) -> Policy:
    shape = (family.experts + 1,)
    return [np.broadcast_to(chances, shape * (t + 1)) for t in range(family.horizon)]


def _check_eta(experts: int, eta: float) -> None:
    if not 0 < eta < experts / (experts + 1):
        raise SettingsError(f"eta is {eta}; give a number above 0 and below experts / (experts + 1)")
