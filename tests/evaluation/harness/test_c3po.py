"""lm-eval scores continuations under a routing adapted to each context."""

from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

import tiny
import tiny_moe
import tiny_rerouting
from fusionroute.errors import SettingsError
from fusionroute.evaluation.harness.method_lm import MethodLM
from fusionroute.methods.single import Single
from fusionroute.models.gates import Gates
from fusionroute.moe.asking import Asked
from fusionroute.moe.c3po.c3po import C3POSettings, Rerouting
from fusionroute.moe.c3po.method import C3PO
from fusionroute.moe.questions.questions import Encoded

QUESTIONS = tiny_rerouting.questions(5, 3)
PAIRS = [(question.text, option) for question in QUESTIONS for option in question.options]
PAIRS += [("short", " and a much longer continuation than its context")]


@pytest.fixture(scope="module")
def gates() -> Gates:
    return Gates(tiny_moe.mixture("olmoe"), tiny_rerouting.LAYERS)


def method(gates: Gates, folder: Path, **options: object) -> C3PO:
    pathways = tiny_rerouting.recorded(gates.model, folder / "recorded")
    settings = C3POSettings.parse(options)
    return C3PO(Rerouting.of(gates.model, pathways, tiny_rerouting.prompt_format(), settings), "moe")


def scores(method: C3PO | Single) -> list[float]:
    lm = MethodLM(method, tiny.tokenizer(), max_batch=4)
    requests = [Instance("loglikelihood", {}, pair, at) for at, pair in enumerate(PAIRS)]
    return [score for score, _ in lm.loglikelihood(requests)]


def test_likelihoods_are_those_of_asking(gates: Gates, tmp_path: Path) -> None:
    """Options of several lengths share a row, and are scored in parts whose widest option reaches into prompts."""
    forced = method(gates, tmp_path, surrogate="kernel", alpha=0.0)
    found, tokenizer = scores(forced), tiny.tokenizer()
    assert forced.rerouting.cost.inputs == 6, "each context is adapted to once"
    encoded = [Encoded(tokenizer.encode(before), (tokenizer.encode(after),), 0) for before, after in PAIRS]
    said = Asked(gates, encoded).say(forced.rerouting.adapt(encoded))
    wanted = -said.loss * torch.tensor([len(each.answers[0]) for each in encoded])
    torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-4, rtol=1e-4)
    alone = scores(Single(gates.model, "moe"))
    assert max(abs(ours - theirs) for ours, theirs in zip(found, alone, strict=True)) > 0.1


def test_own_routing_forced_is_the_model_alone(gates: Gates, tmp_path: Path) -> None:
    forced = method(gates, tmp_path, surrogate="kernel", alpha=1.0)
    assert scores(forced) == pytest.approx(scores(Single(gates.model, "moe")), abs=1e-4)


def test_whole_texts_have_no_question(gates: Gates, tmp_path: Path) -> None:
    lm = MethodLM(method(gates, tmp_path, surrogate="kernel", alpha=1.0), tiny.tokenizer())
    with pytest.raises(SettingsError, match="single token"):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("a text",), 0)])
