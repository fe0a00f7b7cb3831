"""A whole answer in one pass = what decoding saw step by step, for every method that can say so."""

import pytest
import torch

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.method import TeacherForced
from fusionroute.engine.reference import UncachedRunner
from fusionroute.methods.averaging import Averaging
from fusionroute.methods.collab import Collab
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.sequence_selection import SequenceSelection
from fusionroute.methods.single import Single

NEW, TOP = 9, 5
METHODS = {
    "single": lambda team, **make: Single(team.experts["math"], "math", **make),
    "router": lambda team, **make: Single(team.router, "router", **make),
    "fusion_route": lambda team, **make: FusionRoute(team, **make),
    "routing_only": lambda team, **make: FusionRoute(team, complement=False, **make),
    "averaging": lambda team, **make: Averaging(team.experts, [3, 2, 1], **make),
    "averaging_logs": lambda team, **make: Averaging(team.experts, space="log_probabilities", **make),
}


@pytest.fixture(scope="module")
def team():
    return tiny.team()


@pytest.mark.parametrize("name", METHODS)
def test_a_whole_answer_at_once_is_what_decoding_saw(team, name: str) -> None:
    settings = GenerationSettings(max_new_tokens=NEW, logprobs=TOP, ignore_eos=True)
    prompts = tiny.prompts(6, seed=71)
    answers = Engine(METHODS[name](team)).generate(prompts, settings)
    method = METHODS[name](team)
    assert isinstance(method, TeacherForced)
    # the answer but its last token: what comes after that one was never asked
    engine = Engine(method)
    sequences = [engine.sequence(p + a.token_ids[:-1], settings) for p, a in zip(prompts, answers, strict=True)]
    found = method.log_probabilities(sequences, NEW)
    assert found.dtype == torch.float32
    assert found.shape == (6, NEW, tiny.VOCABULARY)
    torch.testing.assert_close(found.logsumexp(-1), torch.zeros(6, NEW), atol=1e-5, rtol=0)
    assert found.argmax(-1).tolist() == [answer.token_ids for answer in answers]
    for row, answer in zip(found, answers, strict=True):
        for position, record in zip(row, answer.trace, strict=True):
            assert position[record.token_id].item() == pytest.approx(record.logprob, abs=1e-4)
            values, tokens = zip(*[(value, token) for token, value in record.top_logprobs], strict=True)
            assert position[list(tokens)].tolist() == pytest.approx(list(values), abs=1e-4)
    one_by_one = METHODS[name](team, make_runner=UncachedRunner)
    for sequence, row in zip(sequences, found, strict=True):
        torch.testing.assert_close(one_by_one.log_probabilities([sequence], NEW)[0], row, atol=1e-4, rtol=1e-4)


def test_an_expert_reads_only_what_picks_it_somewhere(team) -> None:
    method = FusionRoute(team)
    engine = Engine(method)
    sequences = [
        engine.sequence(prompt, GenerationSettings()) for prompt in tiny.prompts(12, seed=72) if len(prompt) > 2
    ]
    method.log_probabilities(sequences, 3)
    for sequence in sequences:
        with torch.no_grad():
            routes = team.router(torch.tensor([sequence.token_ids])).route_logits[0, -3:].argmax(-1).tolist()
        assert [sequence in expert.cache for expert in method.experts] == [at in routes for at in range(3)]
    read = [sequence in expert.cache for sequence in sequences for expert in method.experts]
    assert any(read)
    assert not all(read)
    mixed = [s for s in sequences if sum(s in expert.cache for expert in method.experts) > 1]
    assert mixed, "no sequence picked different experts at different positions"


def test_methods_that_look_ahead_are_not_teacher_forced(team) -> None:
    assert not isinstance(Collab(team.experts), TeacherForced)
    assert not isinstance(SequenceSelection(team.experts), TeacherForced)
