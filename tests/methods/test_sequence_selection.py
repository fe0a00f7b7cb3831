"""Scripted models with answers chosen by hand, then random ones against a plain search."""

import math
from pathlib import Path

import pytest

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.scorer import MeanLogLikelihood, RewardScorer
from fusionroute.engine.sequence import TraceRecord
from fusionroute.errors import RequestTooLargeError, SettingsError, VocabularyError
from fusionroute.methods.sequence_selection import SequenceSelection
from fusionroute.methods.single import Single
from fusionroute.models.reward import RewardModel, load_reward_model
from tiny_reward import save_reward_model
from tiny_scripted import bigram, caches_are_empty

FLAT = [0.25, 0.25, 0.25, 0.25]
# After token 0 math writes 1, 3 and code 2, 3
MATH = [[0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7], [0.3, 0.3, 0.3, 0.1], FLAT]
CODE = [[0.1, 0.2, 0.6, 0.1], [0.2, 0.2, 0.2, 0.4], [0.1, 0.1, 0.1, 0.7], FLAT]
# Likes 2 and then 3 best, so that it agrees with code
JUDGE = [[0.1, 0.1, 0.7, 0.1], FLAT, [0.1, 0.1, 0.1, 0.7], FLAT]
TWO = GenerationSettings(max_new_tokens=2)


def scripted() -> dict:
    return {"math": bigram(MATH), "code": bigram(CODE)}


def test_the_answer_that_all_experts_together_find_likeliest_wins() -> None:
    # 1, 3: math .6*.7, code .2*.4; 2, 3: math .2*.1, code .6*.7
    for_math = (math.log(0.6 * 0.7) + math.log(0.2 * 0.4)) / 4
    for_code = (math.log(0.2 * 0.1) + math.log(0.6 * 0.7)) / 4
    assert for_math > for_code
    method = SequenceSelection(scripted())
    (answer,) = Engine(method).generate([[0]], TWO)
    assert answer.token_ids == [1, 3]
    assert [record.expert for record in answer.trace] == ["math", "math"]
    sequences = [Engine(method).sequence([0], TWO) for _ in range(2)]
    for sequence, ids in zip(sequences, ([1, 3], [2, 3]), strict=True):
        sequence.token_ids += ids
    assert method.scorer.score(sequences, [1, 1]) == pytest.approx([for_math, for_code], abs=1e-5)


def test_one_named_model_may_judge_instead() -> None:
    found = scripted()
    scorer = MeanLogLikelihood.by_model(bigram(JUDGE), "judge", experts=found)
    engine = Engine(SequenceSelection(found, scorer))
    (answer,) = engine.generate([[0]], TWO)
    assert answer.token_ids == [2, 3]
    assert {record.expert for record in answer.trace} == {"code"}
    assert [runner.name for runner in engine.method.runners] == ["math", "code", "judge"]
    assert caches_are_empty(engine)


def test_of_equal_answers_the_first_experts_is_kept() -> None:
    model = bigram(MATH)
    for names in (("one", "two"), ("two", "one")):
        (answer,) = Engine(SequenceSelection(dict.fromkeys(names, model))).generate([[0]], TWO)
        assert {record.expert for record in answer.trace} == {names[0]}


def test_a_reward_model_picks_among_the_experts_own_answers(tmp_path: Path) -> None:
    models, tokenizer = tiny.experts(), tiny.tokenizer()
    reward = RewardModel(*load_reward_model(save_reward_model(tmp_path), device="cpu"))
    settings = GenerationSettings(max_new_tokens=9, logprobs=3)
    prompts = tiny.prompts(8, seed=31)
    engine = Engine(SequenceSelection(models, RewardScorer(reward, tokenizer)), tokenizer)
    found = engine.generate(prompts, settings)
    alone = {name: Engine(Single(model, name), tokenizer).generate(prompts, settings) for name, model in models.items()}
    for at, (prompt, completion) in enumerate(zip(prompts, found, strict=True)):
        text = tokenizer.decode(prompt)
        scores = {name: reward([text], [answers[at].text])[0] for name, answers in alone.items()}
        winner = max(scores, key=scores.__getitem__)
        wanted = alone[winner][at]
        assert completion.token_ids == wanted.token_ids
        assert (completion.text, completion.finish_reason) == (wanted.text, wanted.finish_reason)
        for mine, theirs in zip(completion.trace, wanted.trace, strict=True):
            assert (mine.expert, mine.token_id) == (winner, theirs.token_id)
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
            assert [token for token, _ in mine.top_logprobs] == [token for token, _ in theirs.top_logprobs]
    assert len({completion.trace[0].expert for completion in found}) > 1
    assert caches_are_empty(engine)


def test_stop_rules_are_a_single_models() -> None:
    """One expert selected from is that expert: stop strings, end of sequence, context and budget."""
    model, tokenizer = tiny.language_model(), tiny.tokenizer()
    prompts = [*tiny.prompts(9, seed=32), [9] * (tiny.CONTEXT - 3)]
    alone, chosen = (
        Engine(method, tokenizer) for method in (Single(model, "math"), SequenceSelection({"math": model}))
    )
    free = alone.generate(prompts, GenerationSettings(max_new_tokens=12))
    stop = tuple(dict.fromkeys(completion.text[3:5] for completion in free if len(completion.text) > 5))
    reasons = set()
    for settings in (
        GenerationSettings(max_new_tokens=12, stop=stop),
        GenerationSettings(max_new_tokens=30, ignore_eos=True),
        GenerationSettings(max_new_tokens=1),
    ):
        wanted, found = alone.generate(prompts, settings), chosen.generate(prompts, settings)
        assert found == wanted
        reasons |= {completion.finish_reason for completion in found}
    assert reasons == {"stop", "length"}
    assert caches_are_empty(chosen)


def test_it_goes_on_from_what_is_written() -> None:
    engine = Engine(SequenceSelection(scripted()))
    sequence = engine.submit([0], TWO)
    engine.scheduler.admit()
    sequence.append(TraceRecord(2, "code"))
    (answer,) = engine.run([sequence])
    assert answer.token_ids[0] == 2
    assert [record.expert for record in answer.trace] == ["code", "code"]  # math would write 0 after 2


def test_an_answer_takes_one_row_of_memory_in_each_model() -> None:
    models = tiny.experts()
    free = Engine(SequenceSelection(models)).generate(tiny.prompts(6, seed=33), GenerationSettings(max_new_tokens=8))
    engine = Engine(SequenceSelection(models), cache_limit="64KiB")
    most: list[int] = []
    found = engine.generate(
        tiny.prompts(6, seed=33),
        GenerationSettings(max_new_tokens=8),
        on_finish=lambda _: most.append(sum(runner.cache.nbytes for runner in engine.method.runners)),
    )
    assert [c.token_ids for c in found] == [c.token_ids for c in free]
    assert 0 < max(most) <= 2**16
    with pytest.raises(RequestTooLargeError):
        engine.submit([9] * 100, GenerationSettings(max_new_tokens=50))


def test_a_model_that_fails_ends_that_sequence_alone() -> None:
    models, bad = tiny.experts(), 200
    prompts = [[token for token in prompt if token != bad] or [9] for prompt in tiny.prompts(4, seed=34)]
    settings = GenerationSettings(max_new_tokens=6)
    wanted = Engine(SequenceSelection(models)).generate(prompts, settings)
    with_nan = models["code"].get_input_embeddings().weight
    with_nan.data[bad] = float("nan")
    engine = Engine(SequenceSelection(models))
    found = engine.generate([[*prompts[0], bad], *prompts], settings)
    assert found[0].finish_reason == "error"
    assert "model 'code' returned NaN logits" in str(found[0].error)
    assert found[0].token_ids == []
    # an answer may itself hold the token that code cannot read
    healthy = [(f, w) for f, w in zip(found[1:], wanted, strict=True) if bad not in w.token_ids]
    assert len(healthy) > 1
    assert all(f.token_ids == w.token_ids for f, w in healthy if f.finish_reason != "error")
    assert caches_are_empty(engine)


def test_a_judge_that_fails_on_an_answer_is_named() -> None:
    found = scripted()
    judge = bigram(JUDGE)
    judge.model.embed_tokens.weight.data[1] = float("nan")  # math's answer begins with it
    scorer = MeanLogLikelihood.by_model(judge, "judge", experts=found)
    engine = Engine(SequenceSelection(found, scorer))
    (answer,) = engine.generate([[0]], TWO)
    assert (answer.finish_reason, answer.token_ids) == ("error", [])
    assert answer.error == "model 'judge' returned NaN logits for what it was to judge"
    assert caches_are_empty(engine)


def test_what_the_reward_model_cannot_read_is_not_chosen(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path, max_position_embeddings=40)
    scorer = RewardScorer(RewardModel(*load_reward_model(folder, device="cpu")), tiny.tokenizer())
    engine = Engine(SequenceSelection(tiny.experts(), scorer), tiny.tokenizer())
    long, short = engine.generate([[70] * 60, [70] * 5], GenerationSettings(max_new_tokens=4))
    assert long.finish_reason == "error"
    assert "the scorer could judge no expert's answer" in str(long.error)
    assert long.token_ids == []
    assert short.finish_reason in ("stop", "length")
    assert caches_are_empty(engine)


def test_what_cannot_be_is_refused_before_any_work() -> None:
    engine = Engine(SequenceSelection(scripted()))
    with pytest.raises(SettingsError, match="SequenceSelection writes greedily and has nothing to sample from"):
        engine.submit([0], GenerationSettings(do_sample=True))
    assert engine.submit([0], GenerationSettings(do_sample=True, temperature=0)) is not None
    with pytest.raises(SettingsError, match="needs at least one; got none"):
        SequenceSelection({})
    with pytest.raises(VocabularyError, match=r"'small' has a vocabulary of 4 token ids but .* has 261"):
        SequenceSelection({"math": tiny.language_model(), "small": bigram(MATH)})
    with pytest.raises(VocabularyError, match="'judge' has a vocabulary of 4 token ids but"):
        MeanLogLikelihood.by_model(bigram(MATH), "judge", experts=tiny.experts())
