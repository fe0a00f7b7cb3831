"""UniTE (arXiv 2410.03777): the average over the union of each model's likeliest strings."""

from collections.abc import Mapping
from collections.abc import Sequence as ListLike

import torch
from torch import Tensor

from fusionroute.errors import SettingsError
from fusionroute.methods.averaging.host import Blend, may_be_written, shares, symbol_of_space
from fusionroute.models.member import Member
from fusionroute.models.vocabulary import UnionVocabulary
from fusionroute.ops.sampling import NEVER


class Unite:
    """Every member scores every candidate by a logit of its own, softmax over the candidates, average.

    A candidate's logit is that of the token that writes it, and of its first sub-token where none does. What is written
    is one drafter token, the first of the chosen string (more of them only until a character is whole).

    Args:
        members: the drafter first.
        weights: w in the order of ``members``, scaled to sum 1; None = equal ones.
        top: likeliest tokens of each member that become candidates.

    Raises:
        SettingsError: weights that are negative, all 0, or not one for each; ``top`` below 1.
    """

    gate: float | None = None

    def __init__(
        self,
        members: ListLike[Member],
        weights: ListLike[float] | None = None,
        top: int = 10,
    ):
        if top < 1:
            raise SettingsError(f"top is at least 1; got {top}")
        self.top = top
        self.weights = shares(members, weights)
        self.members = members
        self.union = UnionVocabulary([member.pieces for member in members])
        self._maps = list(self.union.maps)
        self._space = symbol_of_space(self.union)
        # the token whose logit scores a string that is not among the likeliest, by member
        self._scored_by: list[dict[int, int | None]] = [{} for _ in members]

    def blend(self, logits: ListLike[Tensor]) -> Blend:
        found = [self._likeliest(member, own.float()) for member, own in enumerate(logits)]
        candidates = sorted(set().union(*(likeliest for likeliest, _ in found)))
        each = torch.stack(
            [self._shares(member, own.float(), *found[member], candidates) for member, own in enumerate(logits)]
        )
        symbols = torch.tensor(candidates)
        ends = torch.searchsorted(symbols, self.union.prefix_end[symbols])
        targets = torch.tensor([symbol in found[0][0] and symbol != self._space for symbol in candidates])
        allowed = may_be_written(symbols, self.union, logits[0])
        return Blend(symbols, each, torch.tensor(self.weights), ends, targets, allowed)

    def drafter_ids(self, symbol: int) -> list[int]:
        return self.union.drafter_ids(symbol, whole=False)

    def _likeliest(self, member: int, logits: Tensor) -> tuple[dict[int, float], list[float]]:
        """The symbols of the member's likeliest tokens with their logits, and the logits of those that have no symbol.

        Of several tokens for one symbol the likeliest counts; all that end an answer count together.
        """
        self._maps[member] = symbols = self._maps[member].to(logits.device)
        values, ids = logits.topk(min(self.top, len(logits)))
        found, lost = dict[int, float](), list[float]()
        for symbol, value in zip(symbols[ids].tolist(), values.tolist(), strict=True):
            if symbol == self.union.size:
                lost.append(value)
            elif value > NEVER:
                found.setdefault(symbol, value)
        if self.union.end in found:
            found[self.union.end] = self._ending(member, logits)
        return found, lost

    def _ending(self, member: int, logits: Tensor) -> float:
        return float(logits[sorted(self.members[member].pieces.end_ids)].logsumexp(-1))

    def _shares(
        self,
        member: int,
        logits: Tensor,
        likeliest: Mapping[int, float],
        lost: ListLike[float],
        candidates: ListLike[int],
    ) -> Tensor:
        """P_v of every candidate: softmax over their logits, and over those of likely tokens that nobody can write."""
        scores = dict(likeliest)
        missing = [symbol for symbol in candidates if symbol not in scores]
        if self.union.end in missing:
            missing.remove(self.union.end)
            scores[self.union.end] = self._ending(member, logits)
        tokens = {symbol: self._scoring_token(member, symbol) for symbol in missing}
        asked = [token for token in tokens.values() if token is not None]
        found = dict(zip(asked, logits[asked].tolist(), strict=True))
        scores |= {symbol: NEVER if token is None else found[token] for symbol, token in tokens.items()}
        softmax = torch.tensor([*(scores[symbol] for symbol in candidates), *lost]).softmax(-1)
        return softmax[: len(candidates)].nan_to_num(0.0)  # a member that excludes all candidates has no say

    def _scoring_token(self, member: int, symbol: int) -> int | None:
        """The token that writes the symbol, else its first sub-token; a lone space says nothing of what follows it."""
        known = self._scored_by[member]
        if symbol not in known:
            known[symbol] = self._first_token(member, symbol)
        return known[symbol]

    def _first_token(self, member: int, symbol: int) -> int | None:
        pieces, text = self.members[member].pieces, self.union.bytes_of(symbol)
        if symbol > self.union.end:  # half a character or a special token: nothing else writes that
            return pieces.id_of(text) if text else None
        single = pieces.id_of(text)
        first, *rest = pieces.encode(text) if single is None else [single]
        return rest[0] if rest and pieces.bytes_of[first] == b" " else first
