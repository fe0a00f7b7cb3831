"""Design, section 10: C3PO in the engine = read from the beginning each time; own routing forced = the model alone."""

import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

import tiny
import tiny_moe
import tiny_rerouting
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.reference import UncachedRunner, reference
from fusionroute.engine.runner import Readable, Reading
from fusionroute.engine.sequence import Completion
from fusionroute.methods.single import Single
from fusionroute.models.gates import Gates
from fusionroute.moe.c3po.c3po import C3POSettings, Rerouting
from fusionroute.moe.c3po.method import C3PO
from fusionroute.moe.c3po.routed_runner import Route
from fusionroute.moe.pathways.pathways import Pathways

COUNT = 8
SURROGATES: dict[str, dict[str, object]] = {
    "ngd": {"surrogate": "ngd", "steps": 2, "learning_rate": 0.2},
    "kernel": {"surrogate": "kernel", "alpha": 0.0},
    "mode": {"surrogate": "mode", "alpha": 0.0},
}


class UncachedRoutedRunner(UncachedRunner):
    """Reads every sequence from its beginning, alone; its last prompt token is overridden every time."""

    def __init__(self, gates: Gates, name: str, routes: Mapping[Readable, Route]):
        super().__init__(gates.model, name)
        self.gates, self.routes = gates, routes

    def read(self, sequences: list[Readable], last: int = 1) -> Reading:  # type: ignore[override]
        return Reading(torch.cat([self._read(sequence, last) for sequence in sequences]))

    def _read(self, sequence: Readable, last: int) -> Tensor:
        route = self.routes[sequence]
        with self.gates.overriding(route.routing[None], torch.tensor([len(route.prompt) - 1])):
            return super().read([sequence], last).logits


@cache
def world(family: str) -> tuple[Gates, Pathways]:
    model = tiny_moe.mixture(family)
    with TemporaryDirectory() as folder:
        return Gates(model, tiny_rerouting.LAYERS), tiny_rerouting.recorded(model, Path(folder) / "recorded", count=15)


def method(family: str, options: dict[str, object], **make: type) -> C3PO:
    gates, pathways = world(family)
    settings = C3POSettings.parse(options)
    return C3PO(Rerouting.of(gates.model, pathways, tiny_rerouting.prompt_format(), settings), "moe", **make)


def run_with_traffic(engine: Engine, prompts: list[list[int]], settings: GenerationSettings) -> list[Completion]:
    """Requests join a few at a time while others run; each is cut back once on its way."""
    dice, sequences, cut = random.Random(3), [], set()
    while len(sequences) < len(prompts) or not engine.is_idle:
        sequences += [engine.submit(prompt, settings) for prompt in prompts[len(sequences) :][: dice.randint(0, 4)]]
        engine.step()
        for sequence in engine.scheduler.running:
            if sequence not in cut and dice.random() < 0.3:
                engine.rollback(sequence, dice.randint(sequence.prompt_length, len(sequence)))
                cut.add(sequence)
    assert len(cut) >= COUNT / 2
    return [sequence.completion() for sequence in sequences]


@pytest.mark.parametrize(("family", "surrogate"), [("olmoe", "ngd"), ("qwen3_moe", "kernel"), ("mixtral", "mode")])
def test_engine_equals_reference_under_traffic(family: str, surrogate: str) -> None:
    prompts, settings = tiny.prompts(COUNT, seed=7), GenerationSettings(max_new_tokens=6)
    found = run_with_traffic(Engine(method(family, SURROGATES[surrogate]), max_batch=5), prompts, settings)
    slow = method(family, SURROGATES[surrogate], make_runner=UncachedRoutedRunner)
    wanted = [reference(slow, Engine(slow).sequence(prompt, settings)) for prompt in prompts]
    assert [each.token_ids for each in found] == [each.token_ids for each in wanted]
    gates, _ = world(family)
    alone = Engine(Single(gates.model, "moe")).generate(prompts, settings)
    assert [each.token_ids for each in found] != [each.token_ids for each in alone], "the routing must matter"


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
@pytest.mark.parametrize("surrogate", ["kernel", "mode"])
def test_own_routing_forced_is_the_model_alone(family: str, surrogate: str) -> None:
    """Token for token, and every distribution."""
    gates, _ = world(family)
    prompts, settings = tiny.prompts(6, seed=9), GenerationSettings(max_new_tokens=6, ignore_eos=True, logprobs=3)
    forced = method(family, {"surrogate": surrogate, "alpha": 1.0})
    found, wanted = (Engine(each).generate(prompts, settings) for each in (forced, Single(gates.model, "moe")))
    assert [each.token_ids for each in found] == [each.token_ids for each in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        said, meant = (torch.tensor([record.logprob for record in each.trace]) for each in (ours, theirs))
        torch.testing.assert_close(said, meant, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
def test_without_steps_nothing_is_changed(family: str) -> None:
    gates, _ = world(family)
    prompts, settings = tiny.prompts(4, seed=11), GenerationSettings(max_new_tokens=6)
    still = method(family, {"surrogate": "ngd", "steps": 0})
    found, wanted = (Engine(each).generate(prompts, settings) for each in (still, Single(gates.model, "moe")))
    assert [each.token_ids for each in found] == [each.token_ids for each in wanted]
