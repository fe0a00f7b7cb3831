"""Design, section 10, 6: averaging with weights (1, 0) = the first model, two copies = one; and 5, relabelling."""

import pytest
import torch

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.sequence import Completion
from fusionroute.methods.averaging import Averaging
from fusionroute.methods.single import Single
from fusionroute.ops.averaging import SPACES

PROMPTS = tiny.prompts(8, seed=61)
GREEDY = GenerationSettings(max_new_tokens=14)
SAMPLED = GenerationSettings(max_new_tokens=14, do_sample=True, temperature=0.8, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def models() -> dict:
    return {name: tiny.language_model(seed=at) for at, name in enumerate(("math", "code", "chat"))}


def write(method, settings: GenerationSettings = GREEDY) -> list[Completion]:
    return Engine(method, tiny.tokenizer()).generate(PROMPTS, settings)


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED])
@pytest.mark.parametrize("space", SPACES)
def test_all_weight_on_the_first_is_the_first_alone(models: dict, space: str, settings: GenerationSettings) -> None:
    found = write(Averaging(models, [1, 0, 0], space), settings)
    assert tokens(found) == tokens(write(Single(models["math"], "math"), settings))
    assert {record.expert for completion in found for record in completion.trace} == {"math"}


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED])
@pytest.mark.parametrize("space", SPACES)
def test_copies_of_one_model_are_that_model(models: dict, space: str, settings: GenerationSettings) -> None:
    model = models["math"]
    found = write(Averaging({"one": model, "two": model}, [0.3, 0.7], space), settings)
    assert tokens(found) == tokens(write(Single(model, "math"), settings))
    assert {record.expert for completion in found for record in completion.trace} == {"two"}


@pytest.mark.parametrize("space", SPACES)
def test_relabelling_permutes_the_trace_and_nothing_else(models: dict, space: str) -> None:
    weights = {"math": 0.5, "code": 0.3, "chat": 0.2}
    turned = {name: models[name] for name in ("chat", "math", "code")}
    found = write(Averaging(models, [*weights.values()], space))
    other = write(Averaging(turned, [weights[name] for name in turned], space))
    assert tokens(found) == tokens(other)
    for mine, theirs in zip(found, other, strict=True):
        assert [r.expert for r in mine.trace] == [r.expert for r in theirs.trace]
        assert all(r.weights == pytest.approx((0.2, 0.5, 0.3)) for r in theirs.trace)
    assert len({record.expert for completion in found for record in completion.trace}) > 1


def test_the_average_is_that_of_plain_passes(models: dict) -> None:
    method = Averaging(models, [0.5, 0.3, 0.2])
    sequences = [Engine(method).sequence(prompt, GREEDY) for prompt in PROMPTS]
    for sequence, found in zip(sequences, method.log_probabilities(sequences), strict=True):
        with torch.no_grad():
            each = [model(torch.tensor([sequence.token_ids])).logits[0, -1].softmax(-1) for model in models.values()]
        expected = (0.5 * each[0] + 0.3 * each[1] + 0.2 * each[2]).log()
        torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)
