"""Verify: which place of a draft is both safe and worth an ensemble."""

from collections.abc import Sequence as ListLike
from dataclasses import dataclass

from fusionroute.engine.text_reader import Heard
from fusionroute.methods.safe.drafting import Proposal
from fusionroute.models.vocabulary import Pieces

MAJORITY = 0.5


@dataclass(frozen=True)
class Check:
    """What the checks say of one drafted token.

    Attributes:
        verdict: why it is kept, one of `engine.sequence.VERDICTS`; empty: it calls for an ensemble.
        support: each member's probability of its own token at this place, the drafter's first; empty if not comparable.
        rows: of this place in what each verifier said.
    """

    verdict: str
    support: tuple[float, ...] = ()
    rows: tuple[int, ...] = ()


def alignment(proposal: Proposal, start: int, heard: ListLike[Heard], pieces: Pieces) -> Check:
    """Check 1: does every verifier have a token boundary where the drafted token starts?

    The token's end need not be one. A token that writes nothing has no place in a verifier's text, unless it ends the
    answer: then each verifier's own end is the one to compare.
    """
    if not heard or not (proposal.ends or pieces.bytes_of[proposal.id]):
        return Check("alone")
    rows = [each.rows.get(start) for each in heard]
    if None in rows:
        return Check("boundary")
    aligned = tuple(row for row in rows if row is not None)
    said = [
        each.ending[row] if proposal.ends else each.probabilities[row] for each, row in zip(heard, aligned, strict=True)
    ]
    return Check("", (proposal.probability, *said), aligned)


def agreement(
    aligned: Check, proposal: Proposal, heard: ListLike[Heard], weights: ListLike[float], gate: float | None
) -> Check:
    """Check 2: could an ensemble change anything? Theorem 1 says no under consensus and under a majority.

    consensus: t^v = argmax P_v for every verifier v;  majority: Σ_v w_v P_v(t^v) > 1/2, the drafter's included;
    gate: the drafter gives some token at least ``gate``, where the host asks nobody else.
    """
    agree = [
        each.ending_is_first[row] if proposal.ends else each.is_first[row]
        for each, row in zip(heard, aligned.rows, strict=True)
    ]
    if all(agree):
        verdict = "consensus"
    elif sum(weight * each for weight, each in zip(weights, aligned.support, strict=True)) > MAJORITY:
        verdict = "majority"
    elif gate is not None and proposal.largest >= gate:
        verdict = "gate"
    else:
        verdict = ""
    return Check(verdict, aligned.support, aligned.rows)
