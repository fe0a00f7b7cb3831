"""Scripted models with averages written out by hand; what must be equal stands in tests/invariants/."""

import math

import pytest

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.errors import SettingsError, VocabularyError
from fusionroute.methods.averaging import Averaging
from tiny_scripted import bigram

FLAT = [0.25, 0.25, 0.25, 0.25]
MATH = [[0.01, 0.50, 0.46, 0.03], FLAT, FLAT, FLAT]
CODE = [[0.60, 0.03, 0.31, 0.06], FLAT, FLAT, FLAT]
ONE = GenerationSettings(max_new_tokens=1, logprobs=2)


def scripted() -> dict:
    return {"math": bigram(MATH), "code": bigram(CODE)}


def test_the_largest_average_is_written() -> None:
    (answer,) = Engine(Averaging(scripted())).generate([[0]], ONE)
    # halves: token 0 .305, 1 .265, 2 .385, 3 .045
    (record,) = answer.trace
    assert record.token_id == 2
    assert (record.expert, record.weights) == ("math", (0.5, 0.5))  # .46 against .31
    assert record.logprob == pytest.approx(math.log(0.385), abs=1e-4)
    assert [token for token, _ in record.top_logprobs] == [2, 0]


def test_candidates_are_of_every_expert_that_counts_and_of_the_average() -> None:
    asking = ONE.model_copy(update={"candidates": 1})
    (answer,) = Engine(Averaging(scripted())).generate([[0]], asking)
    found = {name: (token, math.exp(value)) for name, ((token, value),) in answer.trace[0].candidates}
    wanted = {"math": (1, 0.5), "code": (0, 0.6), "fused": (2, 0.385)}
    assert list(found) == list(wanted)
    for name, (token, probability) in wanted.items():
        assert found[name] == (token, pytest.approx(probability, abs=1e-4))
    (answer,) = Engine(Averaging(scripted(), weights=[0, 1])).generate([[0]], asking)
    assert [name for name, _ in answer.trace[0].candidates] == ["code", "fused"]


def test_weights_decide_and_are_scaled() -> None:
    # 1 to 3: token 0 .4525, 1 .1475, 2 .3475
    (answer,) = Engine(Averaging(scripted(), weights=[1, 3])).generate([[0]], ONE)
    (record,) = answer.trace
    assert (record.token_id, record.expert, record.weights) == (0, "code", (0.25, 0.75))
    # 9 to 1: token 1 .453; 2 .445, of which math gives .414
    (answer,) = Engine(Averaging(scripted(), weights=[9, 1])).generate([[0]], ONE)
    assert (answer.token_ids, answer.trace[0].expert) == ([1], "math")


def test_the_author_is_who_gives_most_after_weighting() -> None:
    # token 2 wins by .4*.46 + .6*.31; code gives .186 of it, math .184
    (answer,) = Engine(Averaging(scripted(), weights=[4, 6])).generate([[0]], ONE)
    assert (answer.token_ids, answer.trace[0].expert) == ([2], "code")


def test_an_average_of_log_probabilities_avoids_what_one_model_excludes() -> None:
    # .5*.001 + .5*.9 wins among probabilities; among geometric means sqrt(.001*.9) = .03 loses to sqrt(.6*.05) = .17
    found = {
        "math": bigram([[0.001, 0.6, 0.349, 0.05], FLAT, FLAT, FLAT]),
        "code": bigram([[0.9, 0.05, 0.03, 0.02], FLAT, FLAT, FLAT]),
    }
    by_space = {
        space: Engine(Averaging(found, space=space)).generate([[0]], ONE)[0].token_ids
        for space in ("probabilities", "log_probabilities")
    }
    assert by_space == {"probabilities": [0], "log_probabilities": [1]}


def test_an_expert_of_weight_0_is_never_asked() -> None:
    engine = Engine(Averaging(scripted(), weights=[0, 1]))
    engine.generate([[0]], GenerationSettings(max_new_tokens=5))
    assert [runner.tokens_read > 0 for runner in engine.method.runners] == [False, True]


def test_each_expert_reads_each_token_once() -> None:
    models = {"a": tiny.language_model(seed=1), "b": tiny.language_model("qwen3", seed=2)}
    engine = Engine(Averaging(models), tiny.tokenizer())
    engine.generate([[9] * 7], GenerationSettings(max_new_tokens=10, ignore_eos=True))
    assert [runner.tokens_read for runner in engine.method.runners] == [16, 16]
    assert not any(runner.cache.lengths for runner in engine.method.runners)


def test_any_experts_end_ends_the_answer_and_the_smallest_context_counts() -> None:
    models = {"a": bigram(MATH, max_position_embeddings=20), "b": bigram(CODE)}
    models["a"].generation_config.eos_token_id = 1
    models["b"].generation_config.eos_token_id = [2, 3]
    method = Averaging(models)
    assert (method.eos_ids, method.context_length) == ({1, 2, 3}, 20)


def test_sampling_follows_the_average() -> None:
    engine, draws = Engine(Averaging(scripted())), 600
    one = GenerationSettings(max_new_tokens=1, do_sample=True)
    answers = engine.run([engine.submit([0], one.model_copy(update={"seed": seed})) for seed in range(draws)])
    counts = [sum(answer.token_ids == [token] for answer in answers) for token in range(4)]
    expected = [draws * share for share in (0.305, 0.265, 0.385, 0.045)]
    # three degrees of freedom: 16.3 is passed once in a thousand draws, and the seeds are fixed
    assert sum((count - wanted) ** 2 / wanted for count, wanted in zip(counts, expected, strict=True)) < 16.3


def test_what_cannot_be_averaged() -> None:
    with pytest.raises(SettingsError, match=r"3 weights came for 2 experts \(math, code\); give one for each"):
        Averaging(scripted(), weights=[1, 2, 3])
    with pytest.raises(SettingsError, match="weights are 0 or more"):
        Averaging(scripted(), weights=[1, -2])
    with pytest.raises(SettingsError, match=r"space: unknown option 'logits'; .*allowed: probabilities, log_prob"):
        Averaging(scripted(), space="logits")
    with pytest.raises(VocabularyError, match=r"expert 'small' has a vocabulary of .* but expert 'math' has"):
        Averaging({"math": tiny.language_model(), "small": bigram(MATH)})
    other_bos = tiny.language_model(bos_token_id=3)
    with pytest.raises(VocabularyError, match=r"expert 'code' has bos_token_id \[3\]"):
        Averaging({"math": tiny.language_model(), "code": other_bos})
