import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import tiny
from fusionroute.errors import DataError, ModelOutputError
from fusionroute.models.loading import ModelReference, load_model
from fusionroute.models.prompt import PromptFormat
from fusionroute.training import scores
from fusionroute.training.data import prepare
from fusionroute.training.scores import load_scores, score, score_batch
from tiny_training import NAMES, make_examples, save_model


def examples(count: int = 12) -> Dataset:
    return prepare(make_examples(count), PromptFormat(tiny.tokenizer(), "chat_template"), 60)[0]


@pytest.fixture
def experts(world: Path) -> dict[str, ModelReference]:
    return {name: ModelReference(model=str(world / name)) for name in NAMES}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models in the order in which they are loaded; each must be gone before the next one comes."""
    names: list[str] = []
    alive: list[weakref.ref[Any]] = []

    def load(reference: ModelReference, **options: Any) -> Any:
        assert all(model() is None for model in alive), "two experts in memory"
        names.append(Path(reference.model).name)
        model = load_model(reference, **options)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(scores, "load_model", load)
    return names


def test_scores_are_what_each_expert_says_alone(
    world: Path, experts: dict[str, ModelReference], loaded: list[str], tmp_path: Path
) -> None:
    dataset = examples()
    score(dataset, experts, tiny.tokenizer(), tmp_path, batch_size=5)
    scored = load_scores(tmp_path, NAMES)
    assert loaded == list(NAMES)
    columns = [f"{kind}.{name}" for kind in ("nll", "top_choice") for name in NAMES]
    assert scored.column_names == ["input_ids", "prompt_length", *columns]
    assert scored["input_ids"][:] == dataset["input_ids"][:]
    for name in NAMES:
        model = load_model(world / name, device="cpu")
        for row in scored:
            ids, start = torch.tensor([row["input_ids"]]), row["prompt_length"]
            with torch.no_grad():
                said = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
            nll = -said.gather(-1, ids[0, start:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(row[f"nll.{name}"]), nll, rtol=1e-5, atol=1e-5)
            assert row[f"top_choice.{name}"] == said.argmax(-1).tolist()


def test_score_batch_speaks_of_each_next_token() -> None:
    nll, top = score_batch(
        tiny.language_model(), torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1] * 3, [1, 1, 0]])
    )
    assert nll.shape == top.shape == (2, 2)
    assert nll.dtype == torch.float32
    assert top.dtype == torch.int32
    assert not nll.requires_grad


def test_an_interrupted_scoring_goes_on_where_it_stopped(
    experts: dict[str, ModelReference], loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(examples(), {"math": experts["math"]}, tiny.tokenizer(), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(scores.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # dies while writing
        with pytest.raises(KeyboardInterrupt):
            score(examples(), experts, tiny.tokenizer(), tmp_path)
    assert not (tmp_path / "code.parquet").exists()
    (tmp_path / "chat.parquet").write_bytes(b"PAR1 half a file")  # not recorded in scores.json, so nobody reads it
    with pytest.raises(DataError, match="no scores of code, chat"):
        load_scores(tmp_path, NAMES)
    loaded.clear()
    score(examples(), experts, tiny.tokenizer(), tmp_path)
    assert loaded == ["code", "chat"]
    at_once = tmp_path / "at_once"
    score(examples(), experts, tiny.tokenizer(), at_once)
    assert load_scores(tmp_path, NAMES)[:] == load_scores(at_once, NAMES)[:]
    loaded.clear()
    score(examples(), experts, tiny.tokenizer(), tmp_path)
    assert loaded == []


def test_scores_of_something_else_are_refused(world: Path, experts: dict[str, ModelReference], tmp_path: Path) -> None:
    folder, moving = tmp_path / "scores", tmp_path / "math"
    shutil.copytree(world / "math", moving)
    experts = {"math": ModelReference(model=str(moving))}
    score(examples(), experts, tiny.tokenizer(), folder)

    def refused(message: str, dataset: Dataset, tokenizer: Any, **options: Any) -> None:
        with pytest.raises(DataError, match=message):
            score(dataset, experts, tokenizer, folder, **options)

    refused("data: examples was 12, is now 11", examples(11), tiny.tokenizer())
    longer = tiny.tokenizer()
    longer.add_tokens(["<new>"])
    refused("tokenizer: vocabulary was", examples(), longer)
    refused("expert 'math': dtype was auto, is now bfloat16", examples(), tiny.tokenizer(), dtype="bfloat16")
    shutil.rmtree(moving)
    save_model(moving, seed=77)  # same shapes, same config, other weights
    refused("expert 'math': content was", examples(), tiny.tokenizer())


def test_when_files_were_written_does_not_matter(world: Path, loaded: list[str], tmp_path: Path) -> None:
    moving = tmp_path / "math"
    shutil.copytree(world / "math", moving)
    for _ in range(2):
        score(examples(), {"math": ModelReference(model=str(moving))}, tiny.tokenizer(), tmp_path / "scores")
        (moving / "model.safetensors").touch()
    assert loaded == ["math"]


def test_an_expert_without_finite_numbers_is_refused(tmp_path: Path) -> None:
    model = tiny.language_model()
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelOutputError, match="expert 'broken' gives a loss of nan on example"):
        score(examples(), {"broken": ModelReference(model=str(tmp_path / "broken"))}, tiny.tokenizer(), tmp_path / "s")


def test_folders_that_hold_no_scores(experts: dict[str, ModelReference], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no scores"):
        load_scores(tmp_path)
    score(examples(), {"math": experts["math"]}, tiny.tokenizer(), tmp_path)
    assert load_scores(tmp_path).column_names[2:] == ["nll.math", "top_choice.math"]
    (tmp_path / "math.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read"):
        load_scores(tmp_path)
    (tmp_path / "scores.json").write_text(json.dumps({"data": {}}))
    with pytest.raises(DataError, match="not the record of scores"):
        load_scores(tmp_path)
