"""GaC (arXiv 2406.12585): the average of whole distributions over the union of all vocabularies."""

from collections.abc import Sequence as ListLike

import torch
from torch import Tensor

from fusionroute.errors import SettingsError
from fusionroute.methods.averaging.host import Blend, may_be_written, shares, symbol_of_space
from fusionroute.models.member import Member
from fusionroute.models.vocabulary import UnionVocabulary


class Gac:
    """q = Σ_v w_v P_v M_v with M_v from v's tokens to strings. A string takes as many drafter tokens as it needs.

    A string that a member does not have as one token gets nothing from it; so the average sums to less than 1 only by
    what the verifiers alone cannot write: half characters and their control tokens.

    Args:
        members: the drafter first.
        weights: w in the order of ``members``, scaled to sum 1; None = equal ones.
        gate: the verifiers are asked only where the drafter gives no token this much; None = everywhere.

    Raises:
        SettingsError: weights that are negative, all 0, or not one for each; a gate outside (0, 1].
    """

    def __init__(
        self,
        members: ListLike[Member],
        weights: ListLike[float] | None = None,
        gate: float | None = 0.5,
    ):
        if gate is not None and not 0 < gate <= 1:
            raise SettingsError(f"gate is a probability above 0, up to 1, or none; got {gate}")
        self.gate = gate
        self.weights = shares(members, weights)
        self.union = UnionVocabulary([member.pieces for member in members])
        self._maps = list(self.union.maps)
        self._symbols = torch.arange(self.union.size)
        self._ends = self.union.prefix_end
        self._targets = self.union.is_drafters.clone()
        if (space := symbol_of_space(self.union)) is not None:
            self._targets[space] = False

    def blend(self, logits: ListLike[Tensor]) -> Blend:
        device = logits[0].device
        each = torch.stack([self._mapped(member, own).to(device) for member, own in enumerate(logits)])
        self._symbols, self._ends = self._symbols.to(device), self._ends.to(device)
        self._targets = self._targets.to(device)
        weights, allowed = (
            torch.tensor(self.weights, device=device),
            may_be_written(self._symbols, self.union, logits[0]),
        )
        return Blend(self._symbols, each, weights, self._ends, self._targets, allowed)

    def drafter_ids(self, symbol: int) -> list[int]:
        return self.union.drafter_ids(symbol)

    def _mapped(self, member: int, logits: Tensor) -> Tensor:
        """P_v M_v, ``[symbols]``, on the member's own device, where its map then stays."""
        probabilities = logits.float().softmax(-1)
        self._maps[member] = self._maps[member].to(logits.device)
        mapped = probabilities.new_zeros(self.union.size + 1).index_add_(0, self._maps[member], probabilities)
        return mapped[: self.union.size]
