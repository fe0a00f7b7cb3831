"""Exact nearest neighbours by blocks of rows: no index to build, no n × m matrix in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 512  # queries at a time; one block holds BLOCK x references distances
SPARE = 8  # candidates beyond k that are measured exactly, for the blocks' distances are rounded
PAIR_NUMBERS = 2**22  # of one bundle of exact distances, which bounds their memory
ROUNDING = 1e-12  # of a block's squared distance in float64, relative to both norms, with much to spare


@dataclass(frozen=True)
class Found:
    """References near each query.

    Attributes:
        index: places among the references, long ``[queries, k]``; 0 where there is none.
        square: squared Euclidean distances, float64 ``[queries, k]``; infinite where there is none.
    """

    index: Tensor
    square: Tensor


def nearest(
    queries: Tensor,
    references: Tensor,
    k: int,
    *,
    allowed: Tensor | None = None,
    exclude_self: bool = False,
    block: int = BLOCK,
) -> Found:
    """The ``k`` nearest references of each query, the nearest first; of equals the one that comes first.

    Of more than ``SPARE`` equals at the k-th distance, as copies of one text are, it may be any of them.

    Args:
        queries, references: ``[n, d]`` and ``[m, d]``.
        allowed: bool ``[m]``; references that may be found. None: all.
        exclude_self: queries and references are the same rows, and none finds itself.
    """
    pool = _Pool.of(queries, references, allowed, exclude_self)
    parts = [pool.nearest(rows, square, k) for rows, square in pool.blocks(block)]
    return Found(*(torch.cat(each) for each in zip(*parts, strict=True)))


def within(
    queries: Tensor,
    references: Tensor,
    square: float,
    *,
    allowed: Tensor | None = None,
    exclude_self: bool = False,
    block: int = BLOCK,
) -> Found:
    """All references at a squared distance of at most ``square``, in their order.

    There are as many columns as the fullest ball needs: a wide one takes 16 bytes for each query and reference.
    Arguments as for `nearest`.
    """
    # In float64 the blocks' own distances will do; measuring each pair of a wide ball exactly would take minutes
    pool = _Pool.of(queries.double(), references.double(), allowed, exclude_self)
    parts = [pool.within(rows, approximate, square) for rows, approximate in pool.blocks(block)]
    row, column, distance = (torch.cat(each) for each in zip(*parts, strict=True))
    count = torch.bincount(row, minlength=len(queries))
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    found = _nothing(len(queries), int(count.max()) if len(count) else 0, queries.device)
    found.index[row, place], found.square[row, place] = pool.places[column], distance
    return found


@dataclass(frozen=True)
class _Pool:
    """The references that may be found, and the queries, moved so that rounding hurts least."""

    queries: Tensor
    references: Tensor
    places: Tensor  # of the pool's references among all of them
    own: Tensor | None  # each query's own column in the pool, or -1

    @classmethod
    def of(cls, queries: Tensor, references: Tensor, allowed: Tensor | None, exclude_self: bool) -> "_Pool":
        assert not exclude_self or len(queries) == len(references), "only rows of one table can be their own neighbours"
        everything = torch.ones(len(references), dtype=torch.bool, device=references.device)
        places = (everything if allowed is None else allowed.to(references.device)).nonzero().squeeze(1)
        own = None
        if exclude_self:
            own = torch.full((len(references),), -1, device=places.device)
            own[places] = torch.arange(len(places), device=places.device)
        # |a-b|^2 = |a|^2 + |b|^2 - 2ab cancels badly far from the origin, where hidden states lie
        kept = references[places]
        centre = kept.mean(0) if len(kept) else torch.zeros_like(references[0])
        return cls(queries - centre, kept - centre, places, own)

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers of some queries, and their squared distances to the pool, rounded; infinite to themselves."""
        norms = self.references.square().sum(1)
        for start in range(0, max(len(self.queries), 1), size):
            block = self.queries[start : start + size]
            rows = torch.arange(start, start + len(block), device=block.device)
            square = torch.addmm(norms[None], block, self.references.T, alpha=-2) + block.square().sum(1)[:, None]
            if self.own is not None:
                own = self.own[rows]
                square[(own >= 0).nonzero().squeeze(1), own[own >= 0]] = torch.inf
            yield rows, square

    def nearest(self, rows: Tensor, approximate: Tensor, k: int) -> tuple[Tensor, Tensor]:
        candidates = approximate.topk(min(k + SPARE, approximate.shape[1]), largest=False).indices.sort(1).values
        square = self._exact(rows[:, None].expand_as(candidates).reshape(-1), candidates.reshape(-1))
        square = square.view_as(candidates).masked_fill(approximate.gather(1, candidates).isinf(), torch.inf)
        order = square.argsort(dim=1, stable=True)[:, :k]
        found = _nothing(len(rows), k, rows.device)
        width = order.shape[1]
        found.square[:, :width] = square.gather(1, order)
        found.index[:, :width] = self.places[candidates.gather(1, order)]
        found.index.masked_fill_(found.square.isinf(), 0)
        return found.index, found.square

    def within(self, rows: Tensor, approximate: Tensor, square: float) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and squared distances of all pairs that are near enough, in the order of both."""
        norms = self.queries[rows].square().sum(1)[:, None] + self.references.square().sum(1)
        near, column = (approximate <= square + ROUNDING * norms).nonzero(as_tuple=True)
        return rows[near], column, approximate[near, column].clamp(min=0)

    def _exact(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Squared distances of pairs, by their differences."""
        size = max(1, PAIR_NUMBERS // max(self.queries.shape[1], 1))
        return torch.cat(
            [
                (self.queries[some_rows] - self.references[some_columns]).double().square().sum(1)
                for some_rows, some_columns in zip(rows.split(size), columns.split(size), strict=True)
            ]
        )


def _nothing(n: int, k: int, device: torch.device) -> Found:
    index = torch.zeros(n, k, dtype=torch.long, device=device)
    return Found(index, torch.full((n, k), torch.inf, dtype=torch.float64, device=device))
