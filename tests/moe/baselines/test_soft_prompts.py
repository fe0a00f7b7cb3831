from pathlib import Path
from typing import Any

import pytest
import torch

from fusionroute.errors import DataError, OutputExistsError, SettingsError
from fusionroute.models.gates import Gates
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.asking import ask
from fusionroute.moe.baselines.soft_prompts import (
    SoftPromptSettings,
    answered_correctly,
    load_soft_prompt,
    train_soft_prompt,
    with_soft_prompt,
)
from fusionroute.moe.questions.questions import Encoded, encode_questions, read_questions
from fusionroute.moe.roma.batches import answer_loss, pad_right
from tiny_roma import as_values, tensors, world
from tiny_training import Recorder

pytest.importorskip("peft")

TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def settings(folder: Path, **options: Any) -> SoftPromptSettings:
    world(folder)
    values = {name: as_values(folder)[name] for name in ("model", "data", "device")}
    optimiser = {"batch_size": 8, "epochs": 4, "learning_rate": 0.1}
    return SoftPromptSettings.parse({**values, "optimiser": optimiser, "virtual_tokens": 4, **options})


def questions(folder: Path) -> list[Encoded]:
    return encode_questions(read_questions(folder / "train.jsonl"), PromptFormat(load_tokenizer(folder / "base")))


def loss(model: Any, encoded: list[Encoded]) -> float:
    batch = pad_right(encoded, 0)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[:, -labels.shape[1] :]
    return float(answer_loss(logits, labels).mean())


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_it_learns_and_leaves_the_model_as_it_is(kind: Any, tmp_path: Path) -> None:
    made = train_soft_prompt(settings(tmp_path, kind=kind), tmp_path / "soft")
    files = {path.name for path in made.iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "README.md", *TOKENIZER_FILES}
    (learned,) = tensors(made).values()  # and nothing of the model
    assert learned.shape == ((4, 32) if kind == "prompt" else (4, 4 * 2 * 2 * 8))  # 4 layers, key and value, 2 heads
    model, encoded = load_model(str(tmp_path / "base"), device="cpu"), questions(tmp_path)
    untouched = loss(model, encoded)
    adapted = load_soft_prompt(model, made)
    assert loss(adapted, encoded) < untouched - 0.1
    assert len(answered_correctly(adapted, encoded, pad_id=0)) == len(encoded)
    seen: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    answered_correctly(adapted, encoded, pad_id=0)
    assert max(seen) < min(len(each.prompt) for each in encoded)
    with adapted.disable_adapter():
        assert loss(adapted.get_base_model(), encoded) == untouched


def test_what_is_correct_is_so_by_the_one_rule(tmp_path: Path) -> None:
    world(tmp_path)
    model, encoded = load_model(str(tmp_path / "base"), device="cpu"), questions(tmp_path)
    written: list[int] = []
    for _ in range(3):  # what the model writes by itself, as a free answer that is right
        written.append(int(model(torch.tensor([encoded[0].prompt + written])).logits[0, -1].argmax()))
    free = [Encoded(encoded[0].prompt, (written,), 0), Encoded(encoded[0].prompt, ([*written[:2], 9],), 0)]
    expected = ask(Gates(model, 1), [*encoded, *free]).correct
    assert expected[-2:].tolist() == [True, False]
    assert 0 < expected[:-2].sum() < len(encoded)
    found = answered_correctly(model, [*encoded, *free], pad_id=0, batch_size=7)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_the_loss_is_that_of_the_answers_columns_alone(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one step on all questions; the soft prompt is drawn by the seed, so it can be made once more."""
    how, seen, progress = settings(tmp_path, kind=kind), list[int](), Recorder()
    how = how.model_copy(
        update={
            "optimiser": how.optimiser.model_copy(
                update={"batch_size": 24, "max_steps": 1, "logging_steps": 1, "warmup_ratio": 0.0}
            )
        }
    )
    encoded = questions(tmp_path)

    def watched(*args: Any, **options: Any) -> Any:
        model = load_model(*args, **options)
        model.lm_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
        return model

    monkeypatch.setattr("fusionroute.moe.baselines.soft_prompts.load_model", watched)
    train_soft_prompt(how, tmp_path / "soft", progress=progress)
    assert seen
    assert max(seen) < min(len(each.prompt) for each in encoded)
    torch.manual_seed(0)
    fresh = with_soft_prompt(load_model(str(tmp_path / "base"), device="cpu"), kind, 4)
    assert f"loss {loss(fresh, encoded):.3g}" in " ".join(progress.finished)


def test_only_the_soft_prompt_can_be_trained(tmp_path: Path) -> None:
    world(tmp_path)
    adapted = with_soft_prompt(load_model(str(tmp_path / "base"), device="cpu"), "prompt", 4)
    trainable = {name: each.shape for name, each in adapted.named_parameters() if each.requires_grad}
    assert list(trainable.values()) == [(4, 32)]


def test_what_is_judged_by_is_not_learned(tmp_path: Path) -> None:
    values = as_values(tmp_path)["data"] | {"evaluation": str(tmp_path / "train.jsonl")}
    with pytest.raises(DataError, match=r"data\.evaluation overlap: 24 of 24"):
        train_soft_prompt(settings(tmp_path, data=values), tmp_path / "soft")


def test_another_folder_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "soft").mkdir()
    (tmp_path / "soft" / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"already holds mine\.txt"):
        train_soft_prompt(settings(tmp_path), tmp_path / "soft")


def test_an_option_of_the_optimiser_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    given = settings(tmp_path).model_dump() | {"optimiser": {"epochs": 2}}
    assert SoftPromptSettings.parse(given).optimiser.learning_rate == 1e-2
    with pytest.raises(SettingsError, match="'save_steps'"):  # it is never saved on the way
        SoftPromptSettings.parse(given | {"optimiser": {"save_steps": 2}})
