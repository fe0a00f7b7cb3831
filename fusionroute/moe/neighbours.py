"""RoMA's neighbourhood graph (arXiv 2511.07419, Eqs. 3 to 6): which questions' routing each question is drawn to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fusionroute.errors import DataError, ModelOutputError, SettingsError
from fusionroute.ops.manifold import edge_weights, similarity
from fusionroute.ops.nearest import BLOCK, Found, nearest, within


@dataclass(frozen=True)
class Neighbours:
    """The neighbourhood of each of n questions.

    Attributes:
        index: places among the references, long ``[n, k]``.
        weight: W_ij, float32 ``[n, k]``. A row sums to 1, or is all 0: an empty neighbourhood. Places of weight 0 are
            padding.
        sigma: the bandwidth of Eq. (5); NaN where similarity has no part in it.
    """

    index: Tensor
    weight: Tensor
    sigma: float

    @property
    def empty(self) -> int:
        """How many questions have no neighbour at all."""
        return int((self.weight.sum(1) == 0).sum())


def neighbours(
    queries: Tensor,
    references: Tensor,
    allowed: Tensor,
    *,
    k: int = 3,
    epsilon: float | None = None,
    sigma: float | None = None,
    exclude_self: bool,
    block: int = BLOCK,
) -> Neighbours:
    """The ``k`` most similar references of each query, Eq. (3), or all of at least ``epsilon``, Eq. (4).

    Exact; ties go to the reference that comes first, as far as `nearest` promises it. Fewer than ``k`` neighbours are
    taken as they are.

    Args:
        queries, references: embeddings, ``[n, d]`` and ``[m, d]``.
        allowed: the success set S, bool ``[m]``.
        epsilon: least similarity, above 0 and at most 1.
        sigma: bandwidth; None takes the median distance to the ``k`` nearest, in ε mode too (our choice, since the
            ball itself depends on it).
        exclude_self: queries and references are the same questions, and none is its own neighbour.

    Raises:
        DataError: S is empty or has nothing but the question itself, or the median distance is 0.
        ModelOutputError: embeddings that are no numbers.
        SettingsError: k, ε or σ out of range.
    """
    _check_settings(k, epsilon, sigma)
    refuse_broken_embeddings(queries, references)
    found = nearest(queries, references, k, allowed=allowed, exclude_self=exclude_self, block=block)
    if sigma is None:
        sigma = _median_distance(found, allowed)
    else:
        _refuse_empty(found, allowed)
    if epsilon is not None:
        radius = _radius(sigma, epsilon)
        found = within(queries, references, radius, allowed=allowed, exclude_self=exclude_self, block=block)
    return Neighbours(found.index, _weights(found.square, sigma).float(), sigma)


def neighbours_of_each(
    queries: Tensor,
    references: Tensor,
    allowed: Tensor,
    *,
    k: int = 3,
    epsilon: float | None = None,
    sigma: float,
) -> Neighbours:
    """`neighbours` where each query has a success set of its own, ``allowed [n, m]``; it may be empty.

    All are searched at once, for more neighbours than are wanted; of them each query's own are kept.

    Raises:
        ModelOutputError, SettingsError: as `neighbours` raises them.
    """
    _check_settings(k, epsilon, sigma)
    refuse_broken_embeddings(queries, references)
    if epsilon is None:
        others = (~allowed[allowed.any(1)]).sum(1)
        most = int(others.max()) if len(others) else 0
        found = _only(allowed, nearest(queries, references, k + most))
        first = found.square.isinf().long().argsort(dim=1, stable=True)[:, :k]
        found = Found(found.index.gather(1, first), found.square.gather(1, first))
    else:
        found = _only(allowed, within(queries, references, _radius(sigma, epsilon)))
    return Neighbours(found.index, _weights(found.square, sigma).float(), sigma)


def _only(allowed: Tensor, found: Found) -> Found:
    """Without what a query may not find."""
    forbidden = ~allowed.gather(1, found.index)
    return Found(found.index.masked_fill(forbidden, 0), found.square.masked_fill(forbidden, torch.inf))


def random_neighbours(n: int, allowed: Tensor, k: int, seed: int, exclude_self: bool) -> Neighbours:
    """The control: ``k`` different references of S for each of ``n`` questions, drawn uniformly, each of weight 1/k.

    Raises as `neighbours` does.
    """
    _check_settings(k, None, None)
    assert not exclude_self or n == len(allowed), "only rows of one table can be their own neighbours"
    places = allowed.cpu().nonzero().squeeze(1)
    own = torch.full((n,), len(places))  # each question's place in S; beyond its end where it has none to leave out
    if exclude_self:
        own[places] = torch.arange(len(places))
    drawn = _draw(len(places) - (own < len(places)).long(), k, torch.Generator().manual_seed(seed))
    is_there = drawn >= 0
    _refuse_empty(Found(drawn, torch.zeros(drawn.shape).masked_fill(~is_there, torch.inf)), allowed)
    drawn = (drawn + (drawn >= own[:, None])).clamp(max=len(places) - 1)
    index = places[drawn].where(is_there, 0)
    return Neighbours(index.to(allowed.device), edge_weights(is_there.float()).to(allowed.device), float("nan"))


def _draw(sizes: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """``k`` different numbers below each size, all sets equally likely; −1 where a size is smaller than ``k``.

    Floyd's algorithm, for all rows at once: of 49,000 rows, a permutation each would take gigabytes.
    """
    drawn = torch.full((len(sizes), k), -1)
    for column in range(k):
        last = sizes - k + column
        number = (torch.rand(len(sizes), generator=generator, dtype=torch.float64) * (last + 1)).long()
        taken = (drawn[:, :column] == number[:, None]).any(1)
        drawn[:, column] = torch.where(taken, last, number).where(last >= 0, -1)
    return drawn


def _radius(sigma: float, epsilon: float) -> float:
    """The squared distance at which similarity is ``epsilon``."""
    return -2 * sigma**2 * float(torch.tensor(epsilon, dtype=torch.float64).log())


def _weights(square: Tensor, sigma: float) -> Tensor:
    """Eqs. (5) and (6). Distances count from the nearest neighbour, which leaves W as it is; else a small σ is 0/0."""
    least = square.amin(1, keepdim=True) if square.shape[1] else square
    return edge_weights(similarity(square - least.where(least.isfinite(), 0.0), sigma))


def _median_distance(found: Found, allowed: Tensor) -> float:
    _refuse_empty(found, allowed)
    sigma = float(found.square[found.square.isfinite()].sqrt().quantile(0.5))
    if sigma == 0:
        raise DataError(
            f"the median distance to the nearest neighbours is 0 ({_succeeded(allowed)}), so it is no bandwidth: most "
            "questions stand there several times, or their embeddings are all alike; remove the copies, or set sigma"
        )
    return sigma


def _refuse_empty(found: Found, allowed: Tensor) -> None:
    if not found.square.isfinite().any():
        raise DataError(
            f"no question has a neighbour: {_succeeded(allowed)}, and only those can be neighbours of others; "
            "give questions that the model can answer"
        )


def _succeeded(allowed: Tensor) -> str:
    return f"of {len(allowed):,} questions the model answers {int(allowed.sum()):,} correctly"


def _check_settings(k: int, epsilon: float | None, sigma: float | None) -> None:
    if k < 1:
        raise SettingsError(f"k is 1 or more neighbours; got {k}")
    if epsilon is not None and not 0 < epsilon <= 1:
        raise SettingsError(f"epsilon is a similarity above 0 and at most 1; got {epsilon}")
    if sigma is not None and not 0 < sigma < float("inf"):
        raise SettingsError(f"sigma is a distance above 0; got {sigma}")


def refuse_broken_embeddings(*tables: Tensor) -> None:
    """Raise `ModelOutputError` unless all are numbers."""
    for table in tables:
        if not table.isfinite().all():
            raise ModelOutputError(
                f"{int((~table.isfinite().all(1)).sum()):,} of {len(table):,} embeddings are no numbers; "
                "the embedder's weights are broken or its dtype is too narrow (try bfloat16 or float32)"
            )
