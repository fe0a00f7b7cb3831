"""C3PO's reference set: questions that the model answers right, looked up by what they say or by how they are routed.

Letters in shapes: n inputs, m references, k neighbours, L layers, E experts.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fusionroute.errors import DataError
from fusionroute.moe.neighbours import Neighbours, neighbours, neighbours_of_each
from fusionroute.moe.pathways.pathways import Pathways
from fusionroute.moe.questions.questions import Encoded


class References:
    """Only questions answered correctly take part; the others of a recording are left out here.

    A search depends on one input alone, never on those that are looked up with it.

    Args:
        pathways: the recording of ``encoded``, in its order.
        k, epsilon: as many of the nearest, or all that are at least so similar; see `neighbours`.
        sigma: the bandwidth in both spaces; None: in each the median distance of a reference to its k nearest (ours).
        duplicate: references whose question has a cosine above this to the input's are left out; None = none are.

    Raises:
        DataError: the questions are not those of the recording, or none was answered correctly.
    """

    def __init__(
        self,
        pathways: Pathways,
        encoded: Sequence[Encoded],
        *,
        k: int = 3,
        epsilon: float | None = None,
        sigma: float | None = None,
        duplicate: float | None = 0.95,
    ):
        if len(encoded) != len(pathways):
            raise DataError(
                f"the recording is of {len(pathways)} questions but {len(encoded)} were given; give those that it was "
                "made of, in their order"
            )
        kept = pathways.correct.nonzero().flatten()
        if len(kept) == 0:
            raise DataError(
                f"the model answered none of the {len(encoded)} recorded questions correctly, so there is nothing to "
                "refer to; record others"
            )
        self.routing = pathways.routing[kept]
        self.embeddings = pathways.embeddings[kept]
        self.centre = pathways.centre
        self.encoded = [encoded[at] for at in kept.tolist()]
        self.k, self.epsilon, self.sigma, self.duplicate = k, epsilon, sigma, duplicate

    def __len__(self) -> int:
        return len(self.encoded)

    def by_question(self, embeddings: Tensor) -> Neighbours:
        """Nearest in what they ask, N(x), of inputs ``[n, d]``. A row without weight has no neighbours."""
        allowed = self._allowed(embeddings)
        return self._nearest(embeddings, self.embeddings, self._question_sigma, allowed)

    def by_routing(self, routing: Tensor, embeddings: Tensor) -> Neighbours:
        """Nearest in how they are routed, N(ω), of inputs ``[n, L, E]``; their questions only tell duplicates."""
        allowed = self._allowed(embeddings)
        return self._nearest(routing.flatten(1), self.routing.flatten(1), self._routing_sigma, allowed)

    def _allowed(self, embeddings: Tensor) -> Tensor:
        """``[n, m]``, False for duplicates of an input's question."""
        if self.duplicate is None:
            return torch.ones(len(embeddings), len(self), dtype=torch.bool)
        ours, theirs = (
            normalize(each if self.centre is None else each - self.centre) for each in (embeddings, self.embeddings)
        )
        return ours @ theirs.T <= self.duplicate

    def _nearest(self, queries: Tensor, among: Tensor, sigma: float, allowed: Tensor) -> Neighbours:
        return neighbours_of_each(queries, among, allowed, k=self.k, epsilon=self.epsilon, sigma=sigma)

    @cached_property
    def _question_sigma(self) -> float:
        return self.sigma or self._median_distance(self.embeddings)

    @cached_property
    def _routing_sigma(self) -> float:
        return self.sigma or self._median_distance(self.routing.flatten(1))

    def _median_distance(self, among: Tensor) -> float:
        if len(among) == 1 and self.epsilon is None:
            return 1.0  # a single neighbour has all the weight at any bandwidth
        everybody = torch.ones(len(among), dtype=torch.bool)
        return neighbours(among, among, everybody, k=self.k, exclude_self=True).sigma
