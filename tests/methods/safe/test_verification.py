"""Both checks on made-up probabilities: what is comparable, and what an ensemble could still change."""

import pytest
import torch

from fusionroute.engine.text_reader import Heard
from fusionroute.methods.safe.drafting import Proposal
from fusionroute.methods.safe.verification import Check, agreement, alignment
from tiny_ensemble import known

NOTHING = torch.zeros(0)
PIECES = known("bytes").member.pieces
LETTER = next(id for id, written in enumerate(PIECES.bytes_of) if written == b"a")


def proposal(probability: float, largest: float = 0.0, ends: bool = False) -> Proposal:
    return Proposal(id=LETTER, logits=NOTHING, ends=ends, probability=probability, largest=largest)


def heard(probability: float, is_first: bool, ending: float = 0.0, ending_is_first: bool = False) -> Heard:
    return Heard({0: 0}, NOTHING, [probability], [is_first], [ending], [ending_is_first])


def judged(said: list[Heard], weights: list[float], drafted: Proposal, gate: float | None = None) -> str:
    return agreement(alignment(drafted, 0, said, PIECES), drafted, said, weights, gate).verdict


def test_a_consensus_is_of_all_verifiers() -> None:
    drafted = proposal(0.1)
    assert judged([heard(0.2, True), heard(0.2, True)], [1 / 3] * 3, drafted) == "consensus"
    assert judged([heard(0.2, True), heard(0.2, False)], [1 / 3] * 3, drafted) == ""
    assert judged([heard(0.2, False), heard(0.2, True)], [1 / 3] * 3, drafted) == ""


@pytest.mark.parametrize(("mine", "theirs", "verdict"), [(0.5, 0.5, ""), (0.75, 0.5, "majority"), (1.0, 0.0, "")])
def test_a_majority_is_more_than_half(mine: float, theirs: float, verdict: str) -> None:
    assert judged([heard(theirs, False)], [0.5, 0.5], proposal(mine)) == verdict


def test_weights_count() -> None:
    assert judged([heard(0.0, False)], [0.75, 0.25], proposal(0.75)) == "majority"
    assert judged([heard(0.0, False)], [0.25, 0.75], proposal(0.75)) == ""


def test_at_the_gate_nobody_else_is_asked() -> None:
    assert judged([heard(0.0, False)], [0.5, 0.5], proposal(0.4, largest=0.5), gate=0.5) == "gate"
    assert judged([heard(0.0, False)], [0.5, 0.5], proposal(0.4, largest=0.49), gate=0.5) == ""


def test_ends_are_compared_with_ends() -> None:
    said = heard(0.0, False, ending=0.9, ending_is_first=True)
    assert judged([said], [0.5, 0.5], proposal(0.1, ends=True)) == "consensus"
    assert judged([said], [0.5, 0.5], proposal(0.1)) == ""


def test_without_a_shared_boundary_nothing_is_compared() -> None:
    drafted = proposal(0.9)
    assert alignment(drafted, 1, [heard(0.9, True)], PIECES) == Check("boundary")
    assert alignment(drafted, 0, [], PIECES) == Check("alone")
