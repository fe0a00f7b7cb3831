"""The paper's sampling variant: a drafted token is accepted as in speculative sampling, or another is drawn."""

import torch
from torch import Tensor

from fusionroute.config import GenerationSettings
from fusionroute.methods.averaging.host import Blend, Choice, Host, choice_at
from fusionroute.methods.safe.drafting import Proposal
from fusionroute.ops.sampling import draw, filter_logits


def accept_or_draw(
    proposal: Proposal, blend: Blend, host: Host, settings: GenerationSettings, accept: float, redraw: float
) -> Choice | None:
    """None with probability min(1, P_ens(t) / P_draft(t)); else a draw from max(0, P_ens − P_draft), normalised.

    So what is written follows P_ens (unsharpened), whatever was drafted. Both are after temperature and filters; a
    token counts with all that write the same string.

    Args:
        accept, redraw: two independent numbers, uniform in [0, 1).
    """
    ensemble = filter_logits(blend.average.log(), None, settings.top_k, settings.top_p, settings.min_p).softmax(-1)
    drafter = _drafter(proposal, host, settings).to(ensemble.device)
    symbol = host.union.symbol_of_id(0, proposal.id)
    ours = float(ensemble[blend.symbols == symbol].sum())
    if accept * float(drafter[symbol]) < ours:
        return None
    rest = (ensemble - drafter[blend.symbols]).clamp(min=0) * blend.allowed
    wanted = rest if bool(rest.any()) else ensemble * blend.allowed
    return choice_at(blend, host, int(draw(wanted.log()[None], torch.tensor([redraw]))))


def _drafter(proposal: Proposal, host: Host, settings: GenerationSettings) -> Tensor:
    """P_draft over the union's symbols."""
    filtered = filter_logits(
        proposal.logits, settings.temperature, settings.top_k, settings.top_p, settings.min_p
    ).softmax(-1)
    symbols = host.union.maps[0].to(filtered.device)
    return filtered.new_zeros(host.union.size + 1).index_add_(0, symbols, filtered)
