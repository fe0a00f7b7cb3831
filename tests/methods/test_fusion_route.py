"""Scripted models with answers written out by hand; equality with references stands in tests/invariants/."""

import math
from types import SimpleNamespace

import pytest
import torch

from fusionroute.config import GenerationSettings
from fusionroute.engine.runner import Reading
from fusionroute.engine.sequence import Sequence
from fusionroute.methods.fusion_route import FusionRoute

CPU = torch.device("cpu")


class Scripted:
    """Says the same probabilities after whatever it reads, and remembers for whom it was asked."""

    def __init__(self, script: dict[str, list], name: str):
        self.name, self.device, self.asked = name, CPU, []
        self.probabilities, self.routes = script["says"], script.get("routes")

    def read(self, sequences, last: list[int]) -> Reading:
        self.asked.append(list(sequences))
        assert set(last) == {1}
        logits = torch.tensor(self.probabilities).log().expand(len(sequences), 1, -1)
        if self.routes is None:
            return Reading(logits)
        # the prompt's first token picks the row of routing logits
        return Reading(logits, torch.tensor([[self.routes[s.token_ids[0]]] for s in sequences]))


ROUTER = {"says": [0.1, 0.3, 0.6], "routes": [[2.0, 0.0], [0.0, 1.0]]}
EXPERTS = {"math": {"says": [0.8, 0.1, 0.1]}, "code": {"says": [0.2, 0.5, 0.3]}}


def step(wanted: int | None = None, **options) -> tuple[FusionRoute, list[Sequence]]:
    team = SimpleNamespace(router=ROUTER, experts=EXPERTS, eos_ids=frozenset(), context_length=100)
    method = FusionRoute(team, make_runner=Scripted, **options)  # type: ignore[arg-type]
    sequences = [Sequence([first], GenerationSettings(logprobs=3, candidates=wanted)) for first in (0, 1, 0)]
    method.step(sequences)
    return method, sequences


def test_the_product_of_router_and_chosen_expert_decides() -> None:
    _, (to_math, to_code, _) = step()
    # math: .08 .03 .06 -> token 0; code: .02 .15 .18 -> token 2
    assert (to_math.output_ids, to_code.output_ids) == ([0], [2])
    assert to_math.trace[0].logprob == pytest.approx(math.log(0.08 / 0.17), abs=1e-5)
    assert (to_math.trace[0].expert, to_math.trace[0].decided_by) == ("math", "expert")
    assert (to_code.trace[0].expert, to_code.trace[0].decided_by) == ("code", "router")


def test_routing_weights_are_the_softmax_of_the_heads_outputs() -> None:
    _, (to_math, to_code, _) = step()
    torch.testing.assert_close(to_math.trace[0].weights, tuple(torch.tensor([2.0, 0.0]).softmax(0).tolist()))
    torch.testing.assert_close(to_code.trace[0].weights, tuple(torch.tensor([0.0, 1.0]).softmax(0).tolist()))


def test_without_the_complement_the_chosen_expert_writes_alone() -> None:
    _, (to_math, to_code, _) = step(complement=False)
    assert (to_math.output_ids, to_code.output_ids) == ([0], [1])
    assert {s.trace[0].decided_by for s in (to_math, to_code)} == {"expert"}


def test_candidates_are_of_the_router_the_chosen_expert_and_their_product() -> None:
    _, (to_math, to_code, _) = step(wanted=2)
    expected = {
        "router": {2: 0.6, 1: 0.3},
        "math": {0: 0.8, 1: 0.1},  # of equals the first
        "fused": {0: 0.08 / 0.17, 2: 0.06 / 0.17},
    }
    assert [name for name, _ in to_math.trace[0].candidates] == list(expected)
    for name, best in to_math.trace[0].candidates:
        assert {token: math.exp(value) for token, value in best} == pytest.approx(expected[name], abs=1e-5)
    assert [name for name, _ in to_code.trace[0].candidates] == ["router", "code", "fused"]
    _, (alone, _, _) = step(wanted=2, complement=False)
    assert [name for name, _ in alone.trace[0].candidates] == ["router", "math"]
    _, (unasked, _, _) = step()
    assert unasked.trace[0].candidates == ()


def test_each_expert_is_asked_once_and_only_for_its_own() -> None:
    method, (first, second, third) = step()
    assert method.router.asked == [[first, second, third]]
    assert [expert.asked for expert in method.experts] == [[[first, third]], [[second]]]
