"""Scores against plain passes over each candidate alone."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.reference import UncachedRunner
from fusionroute.engine.runner import Runner
from fusionroute.engine.scorer import UNSCORED, MeanLogLikelihood, RewardScorer
from fusionroute.engine.sequence import Sequence, TraceRecord
from fusionroute.errors import ModelOutputError, VocabularyError
from fusionroute.models.reward import RewardModel, load_reward_model
from tiny_reward import save_reward_model


def candidate(prompt: list[int], answer: list[int], **settings) -> Sequence:
    made = Sequence(prompt, GenerationSettings(**settings), tokenizer=tiny.tokenizer())
    for token in answer:
        made.append(TraceRecord(token, "math"))
    return made


def candidates() -> tuple[list[Sequence], list[int]]:
    """Long and short prompts with long and short answers; where a start stands before the answer's end, or at it."""
    lengths = [(1, 1), (1, 30), (20, 1), (3, 29), (40, 2), (2, 2), (1, 3), (25, 90), (5, 88), (2, 90), (10, 4)]
    texts = tiny.prompts(len(lengths), seed=81, longest=1)
    made = [
        candidate((text * p)[:p], [7 + (3 * at) % 250 for at in range(a)])
        for text, (p, a) in zip(texts, lengths, strict=True)
    ]
    starts = [made_one.prompt_length for made_one in made]
    starts[-1] += 2
    starts[3] -= 1
    return made, starts


def expected(models: list, one: Sequence, start: int) -> float:
    means = []
    for model in models:
        with torch.no_grad():
            logs = model(torch.tensor([one.token_ids])).logits[0, :-1].log_softmax(-1)
        means.append(logs[torch.arange(start - 1, len(one) - 1), one.token_ids[start:]].mean())
    return float(torch.stack(means).mean())


@pytest.mark.parametrize("together", [2048, 16])
def test_the_mean_over_models_of_the_mean_over_tokens(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusionroute.engine.scorer.POSITIONS_TOGETHER", together)
    models = [tiny.language_model(seed=1), tiny.language_model("gemma2", seed=2)]
    made, starts = candidates()
    wanted = [expected(models, one, start) for one, start in zip(made, starts, strict=True)]
    assert len({round(score, 2) for score in wanted}) > 6
    runners = [Runner(model, str(at)) for at, model in enumerate(models)]
    scorer = MeanLogLikelihood(runners)
    assert scorer.score(made, starts) == pytest.approx(wanted, abs=1e-4)
    assert scorer.score(made[::-1], starts[::-1]) == pytest.approx(wanted[::-1], abs=1e-4)
    uncached = MeanLogLikelihood([UncachedRunner(models[0], "0")])
    assert uncached.score(made[:1], starts[:1]) == pytest.approx([expected(models[:1], made[0], starts[0])], abs=1e-4)
    assert scorer.score([], []) == []


def test_what_is_known_is_not_read_again() -> None:
    runner = Runner(tiny.language_model(), "math")
    one = candidate([9] * 30, [10, 11])
    runner.read([one])
    assert runner.tokens_read == 32
    MeanLogLikelihood([runner]).score([one], [31])
    assert runner.tokens_read == 32 + 2  # the token in question, and the one that is followed by it


def test_a_model_that_says_nothing_sane_is_named() -> None:
    sick = tiny.language_model(seed=3)
    sick.get_input_embeddings().weight.data[200] = float("nan")
    made = [candidate([9, 8], [200, 10], max_new_tokens=2), candidate([9, 8], [12, 10], max_new_tokens=2)]
    scores = MeanLogLikelihood([Runner(tiny.language_model(), "math"), Runner(sick, "code")]).score(made, [2, 2])
    assert made[0].error == "model 'code' returned NaN logits for what it was to judge"
    assert made[1].error is None
    assert scores[1] == pytest.approx(expected([tiny.language_model(), sick], made[1], 2), abs=1e-4)


def test_a_judge_of_another_vocabulary_is_refused() -> None:
    experts = {"math": tiny.language_model()}
    with pytest.raises(VocabularyError, match=r"expert 'judge' has a vocabulary of 300 token ids but .* has 261"):
        MeanLogLikelihood.by_model(tiny.language_model(vocab_size=300), "judge", experts=experts)
    scorer = MeanLogLikelihood.by_model(tiny.language_model(max_position_embeddings=50), "judge", experts=experts)
    assert ([runner.name for runner in scorer.runners], scorer.context_length) == (["judge"], 50)


def reward_model(folder: Path, **options) -> RewardModel:
    return RewardModel(*load_reward_model(save_reward_model(folder, **options), device="cpu"))


def test_a_reward_model_reads_text_without_special_tokens(tmp_path: Path) -> None:
    tokenizer, reward = tiny.tokenizer(), reward_model(tmp_path)
    ids = tokenizer("1+1=", add_special_tokens=False).input_ids
    answer = tokenizer("2, I think", add_special_tokens=False).input_ids
    made = [candidate([tokenizer.bos_token_id, *ids], [*answer, tiny.EOS]), candidate(ids, answer)]
    wanted = reward(["1+1="], ["2, I think"])[0]
    assert RewardScorer(reward, tokenizer).score(made, [len(one) - 3 for one in made]) == pytest.approx([wanted] * 2)


def test_text_behind_a_stop_string_is_not_judged(tmp_path: Path) -> None:
    tokenizer, reward = tiny.tokenizer(), reward_model(tmp_path)
    answer = tokenizer("yes. And", add_special_tokens=False).input_ids
    (score,) = RewardScorer(reward, tokenizer).score([candidate([70], answer, stop="s.")], [1])
    assert score == pytest.approx(reward([tokenizer.decode([70])], ["ye"])[0])
    assert score != pytest.approx(reward([tokenizer.decode([70])], ["yes. And"])[0])


def test_its_tokenizer_may_be_another_one(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path)
    mine = tiny.tokenizer()
    other = turned(mine)
    assert mine("hello").input_ids != other("hello").input_ids
    other.save_pretrained(folder)
    reward = RewardModel(*load_reward_model(folder, device="cpu"))
    made = candidate(mine("1+1=").input_ids, mine("2").input_ids)
    with torch.no_grad():
        wanted = reward.model(torch.tensor([other("<user>1+1=<assistant>2<eos>").input_ids])).logits[0, 0].item()
    assert RewardScorer(reward, mine).score([made], [made.prompt_length]) == pytest.approx([wanted], abs=1e-5)


def turned(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer with all but its special tokens in reverse order."""
    record = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, special = record["model"]["vocab"], len(tiny.SPECIAL)
    record["model"]["vocab"] = {
        token: at if at < special else tiny.VOCABULARY - 1 - (at - special) for token, at in vocabulary.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(record)),
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template=tiny.CHAT_TEMPLATE,
    )


def test_what_it_cannot_read_has_no_score_and_nonsense_is_refused(tmp_path: Path) -> None:
    reward = reward_model(tmp_path, max_position_embeddings=30)
    scorer = RewardScorer(reward, tiny.tokenizer())
    made = [candidate([70] * 40, [71]), candidate([70] * 4, [71])]
    scores = scorer.score(made, [40, 4])
    assert scores[0] == UNSCORED < scores[1]
    reward.model.score.weight.data.fill_(float("nan"))
    with pytest.raises(ModelOutputError, match="gives a score that is no number"):
        scorer.score(made, [40, 4])
