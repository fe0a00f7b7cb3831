import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

import tiny
from fusionroute.errors import CheckpointError, ModelOutputError, SettingsError
from fusionroute.models.reward import RewardModel, load_reward_model
from tiny_reward import read_alone, save_reward_model

HELLO = [{"role": "user", "content": "hello"}]
PROMPTS = ["1+1=", HELLO, "1+1=", "a"]
ANSWERS = ["2", "good day to you", "3, or so they say", ""]


def loaded(folder: Path, **options) -> RewardModel:
    return RewardModel(*load_reward_model(save_reward_model(folder), device="cpu"), **options)


def test_a_reward_model_reads_a_conversation(tmp_path: Path) -> None:
    model, tokenizer = load_reward_model(save_reward_model(tmp_path), device="cpu")
    chats = [
        "<user>1+1=<assistant>2<eos>",
        "<user>hello<assistant>good day to you<eos>",
        "<user>1+1=<assistant>3, or so they say<eos>",
        "<user>a<assistant><eos>",
    ]
    expected = [read_alone(model, chat) for chat in chats]
    assert len({round(score, 3) for score in expected}) == 4
    for batch_size in (1, 3, 16):
        scores = RewardModel(model, tokenizer, batch_size=batch_size)(PROMPTS, ANSWERS)
        assert scores == pytest.approx(expected, abs=1e-5)


def test_without_a_template_it_reads_two_texts(tmp_path: Path) -> None:
    reward = RewardModel(*load_reward_model(save_reward_model(tmp_path, template=False), device="cpu"))
    texts = ["1+1=2", "hellogood day to you", "1+1=3, or so they say", "a"]
    assert reward(PROMPTS, ANSWERS) == pytest.approx([read_alone(reward.model, text) for text in texts], abs=1e-5)


def test_the_longest_are_read_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = loaded(tmp_path, batch_size=2)
    shapes: list[int] = []
    monkeypatch.setattr(reward, "_score", lambda encoded: [shapes.append(len(e["input_ids"])) or 0.0 for e in encoded])
    reward(PROMPTS, ANSWERS)
    assert shapes == sorted(shapes, reverse=True)
    assert len(shapes) == 4


def test_what_does_not_fit_gets_no_score(tmp_path: Path) -> None:
    scores = loaded(tmp_path)(PROMPTS[:2], ["2", "x" * tiny.CONTEXT])
    assert scores[1] is None
    assert scores[0] is not None


def test_padding_is_never_read(tmp_path: Path) -> None:
    """A tokenizer without a padding token, and a config that says something else than the tokenizer."""
    folder = Path(save_reward_model(tmp_path, pad_token_id=7))
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("<eos>", "")  # else the last token would look like padding
    tokenizer.save_pretrained(folder)
    model, found = load_reward_model(str(folder), device="cpu")
    assert found.pad_token == "<eos>"
    expected = [read_alone(model, "<user>1+1=<assistant>2"), read_alone(model, "<user>hello<assistant>good day to you")]
    assert RewardModel(model, found)(PROMPTS[:2], ANSWERS[:2]) == pytest.approx(expected, abs=1e-5)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(SettingsError, match="neither a padding nor an end-of-sequence token"):
        load_reward_model(str(folder))


def test_what_is_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has 3 outputs; give one with a single output"):
        load_reward_model(save_reward_model(tmp_path / "three", num_labels=3))
    tiny.language_model("llama", num_labels=1).save_pretrained(tmp_path / "lm")
    tiny.tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(CheckpointError, match=r"lacks score\.weight, so it is no reward model"):
        load_reward_model(str(tmp_path / "lm"))
    with pytest.raises(CheckpointError, match="no model at"):
        load_reward_model("/no/such/model")
    (tmp_path / "three" / "model.safetensors").write_bytes(b"broken")
    (tmp_path / "three" / "config.json").write_text(LlamaConfig(**tiny.COMMON, num_labels=1).to_json_string())
    with pytest.raises(CheckpointError, match="cannot be read as a reward model"):
        load_reward_model(str(tmp_path / "three"))
    shutil.rmtree(tmp_path / "three")
    (tmp_path / "three").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_reward_model(str(tmp_path / "three"))


def test_a_reward_that_is_no_number_is_refused(tmp_path: Path) -> None:
    reward = loaded(tmp_path)
    torch.nn.init.constant_(reward.model.score.weight, float("nan"))
    with pytest.raises(ModelOutputError, match="its weights are broken"):
        reward(PROMPTS, ANSWERS)
