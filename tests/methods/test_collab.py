"""Scripted models with choices worked out by hand, what is read and what memory it takes, and what ends early."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.probe import bytes_per_token
from fusionroute.engine.scorer import MeanLogLikelihood, RewardScorer
from fusionroute.engine.sequence import Sequence
from fusionroute.errors import RequestTooLargeError, SettingsError
from fusionroute.methods.collab import Collab
from fusionroute.methods.single import Single
from fusionroute.models.reward import RewardModel, load_reward_model
from tiny_reward import save_reward_model
from tiny_scripted import bigram, caches_are_empty

FLAT = [0.25, 0.25, 0.25, 0.25]
# Alone, math writes 1, 3 after token 0 and code 2, 3
MATH = [[0.05, 0.6, 0.3, 0.05], [0.1, 0.2, 0.3, 0.4], [0.05, 0.8, 0.05, 0.1], FLAT]
CODE = [[0.1, 0.2, 0.6, 0.1], [0.45, 0.25, 0.25, 0.05], [0.05, 0.4, 0.05, 0.5], FLAT]
TWO = GenerationSettings(max_new_tokens=2)


def scripted() -> dict:
    return {"math": bigram(MATH), "code": bigram(CODE)}


def test_together_they_write_what_no_expert_writes_alone() -> None:
    """With one token of looking ahead, by the product of both models' probabilities.

    First token: math proposes 1, then 3: .6*.4 by itself and .2*.05 by code, .0024; code proposes 2, then 3: .6*.5 by
    itself and .3*.1 by math, .009, and wins. Second token, the last: math proposes 1: .8 and .4; code 3: .5 and .1.
    """
    found = scripted()
    alone = [Engine(Single(model, name)).generate([[0]], TWO)[0].token_ids for name, model in found.items()]
    assert alone == [[1, 3], [2, 3]]
    (answer,) = Engine(Collab(found, rollout=1)).generate([[0]], GenerationSettings(max_new_tokens=2, logprobs=1))
    assert answer.token_ids == [2, 1]
    assert [record.expert for record in answer.trace] == ["code", "math"]
    assert [record.logprob for record in answer.trace] == pytest.approx([math.log(0.6), math.log(0.8)], abs=1e-4)


def test_without_looking_ahead_the_candidates_alone_are_scored() -> None:
    # 1: .6*.2 = .12; 2: .3*.6 = .18; then 1 as above
    (answer,) = Engine(Collab(scripted(), rollout=0)).generate([[0]], TWO)
    assert answer.token_ids == [2, 1]
    # with 1 a little likelier to code, 1 wins: .6*.35 = .21 against .3*.45
    code = [[0.1, 0.35, 0.45, 0.1], *CODE[1:]]
    (answer,) = Engine(Collab({"math": bigram(MATH), "code": bigram(code)}, rollout=0)).generate([[0]], TWO)
    assert answer.token_ids[0] == 1


def test_a_less_likely_candidate_wins_by_what_follows_it() -> None:
    # 1, 0: .5*.4 = .2; 2, 3: .4*.94 = .376
    table = [[0.05, 0.5, 0.4, 0.05], [0.4, 0.2, 0.2, 0.2], [0.02, 0.02, 0.02, 0.94], FLAT]
    model, one = bigram(table), GenerationSettings(max_new_tokens=1)
    cases = [(1, 1, TWO, 1), (2, 0, TWO, 1), (2, 1, TWO, 2), (2, 1, one, 1)]  # the last has no room to look ahead
    for candidates, rollout, settings, wanted in cases:
        engine = Engine(Collab({"math": model}, candidates=candidates, rollout=rollout))
        assert engine.generate([[0]], settings)[0].token_ids[0] == wanted


def test_of_equal_scores_the_first_expert_and_the_likelier_token_win() -> None:
    model = bigram(MATH)
    for names in (("one", "two"), ("two", "one")):
        (answer,) = Engine(Collab(dict.fromkeys(names, model))).generate([[0]], TWO)
        assert answer.token_ids == [1, 3]
        assert {record.expert for record in answer.trace} == {names[0]}
    # a judge to whom all is one
    found = {"math": model}
    scorer = MeanLogLikelihood.by_model(bigram([FLAT] * 4), "judge", experts=found)
    (answer,) = Engine(Collab(found, scorer, candidates=3)).generate([[0]], TWO)
    assert answer.token_ids == [1, 3]


def test_the_same_token_from_two_experts_is_two_candidates() -> None:
    """Both propose 1; what code writes after it is likelier to both, so code is its author."""
    math_ = [[0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.38, 0.42], FLAT, FLAT]
    code = [[0.1, 0.6, 0.2, 0.1], [0.1, 0.05, 0.8, 0.05], FLAT, FLAT]
    (answer,) = Engine(Collab({"math": bigram(math_), "code": bigram(code)}, rollout=1)).generate([[0]], TWO)
    assert (answer.trace[0].token_id, answer.trace[0].expert) == (1, "code")


def test_one_expert_with_one_candidate_writes_as_alone() -> None:
    model, tokenizer = tiny.language_model(), tiny.tokenizer()
    prompts = [*tiny.prompts(5, seed=51), [9] * (tiny.CONTEXT - 3)]
    alone = Engine(Single(model, "math"), tokenizer)
    together = Engine(Collab({"math": model}, rollout=3), tokenizer)
    free = alone.generate(prompts, GenerationSettings(max_new_tokens=12))
    stop = tuple(dict.fromkeys(completion.text[3:5] for completion in free if len(completion.text) > 5))
    for settings in (
        GenerationSettings(max_new_tokens=12, stop=stop),
        GenerationSettings(max_new_tokens=12, ignore_eos=True),
    ):
        assert together.generate(prompts, settings) == alone.generate(prompts, settings)
    assert caches_are_empty(together)


def known_already(last: Any, sequence: Sequence, candidates: int) -> int:
    """Tokens that were written as one of the further candidates of the expert whose turn comes last.

    They stand in the cache when the next round begins; those of the other experts have been cut off by then.
    """
    with torch.no_grad():
        logits = last(torch.tensor([sequence.token_ids])).logits[0, sequence.prompt_length - 1 : -2]
    further = logits.topk(candidates).indices[:, 1:].tolist()
    return sum(token in ranked for token, ranked in zip(sequence.output_ids, further, strict=False))


@pytest.mark.parametrize("candidates", [1, 3])
def test_every_model_reads_the_answer_once_per_candidate(candidates: int, tmp_path: Path) -> None:
    """Prompt of P tokens, T written, R looked ahead; a reward model reads text, so nothing is read for scoring.

    Per row: P - 1 tokens of the prompt, then in each round the last token (all but the newest are in the cache), the
    candidate and R - 1 of what follows it (nobody reads the last). Nothing is cut short: no token ends an answer.
    """
    prompt_length, written, ahead = 11, 6, 4
    models = tiny.experts(eos_token_id=None)
    reward = RewardModel(*load_reward_model(save_reward_model(tmp_path), device="cpu"))
    scorer = RewardScorer(reward, tiny.tokenizer())
    engine = Engine(Collab(models, scorer, candidates=candidates, rollout=ahead))
    # the last rounds have no room to look ahead that far: cancelled before them
    sequence = engine.submit([9] * prompt_length, GenerationSettings(max_new_tokens=40, ignore_eos=True))
    for _ in range(written):
        engine.step()
    engine.cancel(sequence)
    once = candidates * (prompt_length - 1 + written * (1 + ahead))
    spared = known_already(models["chat"], sequence, candidates)
    assert [runner.tokens_read for runner in engine.method.runners] == [once, once, once - spared]
    assert caches_are_empty(engine)


@pytest.mark.parametrize("candidates", [1, 2])
def test_scoring_by_likelihood_reads_the_candidates_and_one_token_before(candidates: int) -> None:
    """As above; and each of E models reads each expert's candidate, what follows it, and the token that it follows."""
    prompt_length, written, ahead, count = 11, 6, 4, 3
    models = tiny.experts()
    engine = Engine(Collab(models, candidates=candidates, rollout=ahead))
    sequence = engine.submit([9] * prompt_length, GenerationSettings(max_new_tokens=40, ignore_eos=True))
    for _ in range(written):
        engine.step()
    engine.cancel(sequence)
    # to propose, and to score a candidate of each expert
    once = candidates * (prompt_length - 1 + written * (1 + ahead + count * (1 + 1 + ahead)))
    # Scoring those of the experts before has made the further rows read the last token; the first reads it again
    spared = written * (candidates - 1)
    lucky = known_already(models["chat"], sequence, candidates)
    assert [runner.tokens_read for runner in engine.method.runners] == [once - lucky, once - spared, once - spared]
    assert caches_are_empty(engine)


def test_rows_and_memory_are_promised_and_kept() -> None:
    models = tiny.experts()
    prompts, settings = tiny.prompts(7, seed=52, longest=12), GenerationSettings(max_new_tokens=6, ignore_eos=True)
    wanted = Engine(Collab(models, candidates=3, rollout=2)).generate(prompts, settings)
    limit = 120 * sum(bytes_per_token(model, name) for name, model in models.items())
    engine = Engine(Collab(models, candidates=3, rollout=2), cache_limit=limit)
    assert engine.scheduler.token_limit == 40
    sequences = [engine.submit(prompt, settings) for prompt in prompts]
    most = 0
    while not engine.is_idle:
        engine.step()
        running = len(engine.scheduler.running)
        most = max(most, running)
        assert sum(runner.cache.nbytes for runner in engine.method.runners) <= limit
        assert all(len(runner.cache.lengths) == 3 * running for runner in engine.method.runners)
    assert 1 < most < 7
    assert [sequence.completion().token_ids for sequence in sequences] == [c.token_ids for c in wanted]
    with pytest.raises(RequestTooLargeError, match="need 41 cached tokens but the limit is 40"):
        engine.submit([9] * 35, settings)


def test_nothing_is_left_when_sequences_are_cut_back_cancelled_or_finished() -> None:
    models, dice = tiny.experts(), random.Random(0)
    engine = Engine(Collab(models, candidates=2, rollout=3), tiny.tokenizer())
    settings = GenerationSettings(max_new_tokens=8)
    prompts = tiny.prompts(4, seed=53)
    wanted = engine.generate(prompts, settings)
    sequences = [engine.submit(prompt, settings) for prompt in prompts]
    for _ in range(4):
        engine.step()
    for sequence in list(engine.scheduler.running):
        cut = dice.randint(sequence.prompt_length, len(sequence))
        engine.rollback(sequence, cut)
        for runner in engine.method.runners:  # what is kept is what is left
            assert max(runner.cache.lengths[shadow] for shadow in engine.method._shadows[sequence]) <= cut
    engine.cancel(sequences[0])
    found = engine.run(sequences)
    assert [c.token_ids for c in found[1:]] == [c.token_ids for c in wanted[1:]]
    assert caches_are_empty(engine)
    assert not engine.method._shadows
    rounds = engine.stream(prompts[1], settings)
    assert next(rounds).output_ids == wanted[1].token_ids[:1]
    rounds.close()  # type: ignore[attr-defined]
    assert caches_are_empty(engine)


@pytest.mark.parametrize("broken", ["math", "chat"])
def test_a_model_that_fails_ends_that_sequence_alone(broken: str) -> None:
    models, bad = tiny.experts(), 200
    prompts = [[token for token in prompt if token != bad] or [9] for prompt in tiny.prompts(4, seed=54)]
    for model in models.values():  # nobody proposes the token that one of them cannot read
        model.lm_head.weight.data[bad] = 0
    settings = GenerationSettings(max_new_tokens=6)
    wanted = Engine(Collab(models, candidates=2, rollout=2)).generate(prompts, settings)
    models[broken].get_input_embeddings().weight.data[bad] = float("nan")
    engine = Engine(Collab(models, candidates=2, rollout=2), max_batch=3)
    found = engine.generate([[*prompts[0], bad], *prompts], settings)
    assert (found[0].finish_reason, found[0].token_ids) == ("error", [])
    assert f"model '{broken}' returned NaN logits" in str(found[0].error)
    assert [c.token_ids for c in found[1:]] == [c.token_ids for c in wanted]
    assert caches_are_empty(engine)


def test_a_model_that_fails_on_what_lies_ahead() -> None:
    """Math proposes 1, which code cannot read; the answer would end behind it, and still nobody may win by NaN."""
    found = scripted()
    with torch.no_grad():
        found["code"].model.embed_tokens.weight[1] = float("nan")
    engine = Engine(Collab(found, rollout=1))
    (answer,) = engine.generate([[0]], TWO)
    assert (answer.finish_reason, answer.token_ids) == ("error", [])
    assert answer.error == "model 'code' returned NaN logits for what it was to judge"
    assert caches_are_empty(engine)


def test_a_reward_model_judges_prompt_answer_and_what_lies_ahead(tmp_path: Path) -> None:
    """Against a plain search that asks each expert alone for its candidates and what it would write after them."""
    models, tokenizer = tiny.experts(), tiny.tokenizer()
    reward = RewardModel(*load_reward_model(save_reward_model(tmp_path), device="cpu"))
    settings = GenerationSettings(max_new_tokens=5)
    prompt = tiny.prompts(1, seed=55)[0]
    engine = Engine(Collab(models, RewardScorer(reward, tokenizer), candidates=2, rollout=3), tokenizer)
    (found,) = engine.generate([prompt], settings)
    written: list[int] = []
    for record in found.trace:
        options = []
        for name, model in models.items():
            logits = model(torch.tensor([[*prompt, *written]])).logits[0, -1]
            for token in logits.topk(2).indices.tolist():
                room = min(3, settings.max_new_tokens - len(written) - 1)
                ids = [*written, token]
                if room and token != tiny.EOS:
                    ahead = GenerationSettings(max_new_tokens=room)
                    ids += Engine(Single(model, name)).generate([[*prompt, *ids]], ahead)[0].token_ids
                text = tokenizer.decode(ids, skip_special_tokens=True)
                options.append((reward([tokenizer.decode(prompt)], [text])[0], name, token))
        best = max(options, key=lambda option: option[0])
        assert (record.expert, record.token_id) == best[1:]
        written.append(record.token_id)
    assert len(written) == 5


def test_what_cannot_be_is_refused() -> None:
    for options in ({"candidates": 0}, {"rollout": -1}):
        with pytest.raises(SettingsError, match="candidates are at least 1 and rollout at least 0; got"):
            Collab(scripted(), **options)
    with pytest.raises(SettingsError, match="Collab writes greedily"):
        Engine(Collab(scripted())).generate([[0]], GenerationSettings(do_sample=True, seed=1))
