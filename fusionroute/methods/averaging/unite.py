"""UniTE (arXiv 2410.03777): the average over the union of each model's likeliest strings."""

from collections.abc import Mapping
from collections.abc import Sequence as ListLike

import torch
from torch import Tensor

from fusionroute.errors import SettingsError
from fusionroute.methods.averaging.host import Blend, shares, symbol_of_space
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
        self._scored_by: list[dict[int, int]] = [{} for _ in members]

    def blend(self, logits: ListLike[Tensor]) -> Blend:
        likeliest = [self._likeliest(member, own.float()) for member, own in enumerate(logits)]
        candidates = sorted(set().union(*likeliest))
        scores = torch.tensor(
            [self._scores(member, own.float(), likeliest[member], candidates) for member, own in enumerate(logits)]
        )
        each = scores.softmax(-1).nan_to_num(0.0)  # a member that excludes all candidates has no say
        symbols = torch.tensor(candidates)
        ends = torch.searchsorted(symbols, self.union.prefix_end[symbols])
        targets = [symbol in likeliest[0] and symbol != self._space for symbol in candidates]
        return Blend(symbols, each, torch.tensor(self.weights), ends, torch.tensor(targets))

    def drafter_ids(self, symbol: int) -> list[int]:
        return self.union.drafter_ids(symbol, whole=False)

    def _likeliest(self, member: int, logits: Tensor) -> dict[int, float]:
        """The member's likeliest symbols with their logits; of several tokens for one symbol the likeliest counts."""
        self._maps[member] = symbols = self._maps[member].to(logits.device)
        usable = logits.masked_fill(symbols == self.union.size, NEVER)
        values, ids = usable.topk(min(self.top, len(usable)))
        found: dict[int, float] = {}
        for symbol, value in zip(symbols[ids].tolist(), values.tolist(), strict=True):
            if value > NEVER:
                found.setdefault(symbol, value)
        return found

    def _scores(
        self, member: int, logits: Tensor, likeliest: Mapping[int, float], candidates: ListLike[int]
    ) -> list[float]:
        """The member's logit of every candidate."""
        scores = dict(likeliest)
        missing = [symbol for symbol in candidates if symbol not in scores]
        if self.union.end in missing:
            missing.remove(self.union.end)
            scores[self.union.end] = float(logits[sorted(self.members[member].pieces.end_ids)].amax())
        tokens = {symbol: self._scoring_token(member, symbol) for symbol in missing}
        asked = [token for token in tokens.values() if token is not None]
        found = dict(zip(asked, logits[asked].tolist(), strict=True))
        scores |= {symbol: NEVER if token is None else found[token] for symbol, token in tokens.items()}
        return [scores[symbol] for symbol in candidates]

    def _scoring_token(self, member: int, symbol: int) -> int | None:
        """The token that writes the symbol, else its first sub-token; none for what only the drafter can write."""
        if symbol > self.union.end:
            return None
        known = self._scored_by[member]
        if symbol not in known:
            known[symbol] = self.members[member].pieces.first_id(self.union.bytes_of(symbol))
        return known[symbol]
