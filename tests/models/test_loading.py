from pathlib import Path

import pytest
import torch
from transformers import Gemma2PreTrainedModel

import tiny
from fusionroute.errors import CheckpointError, SettingsError
from fusionroute.models.loading import ModelReference, load_model, load_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.language_model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_loads_in_evaluation_mode(folder: Path) -> None:
    model = load_model(folder)
    assert not model.training
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(model(ids).logits, tiny.language_model()(ids).logits)
    assert load_tokenizer(folder).get_vocab() == tiny.tokenizer().get_vocab()


def test_float16_checkpoints_become_float32_on_cpu_unless_asked(tmp_path: Path) -> None:
    tiny.language_model().half().save_pretrained(tmp_path)
    assert load_model(tmp_path, device="cpu").dtype == torch.float32
    assert load_model(tmp_path, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(ModelReference(model=str(tmp_path), dtype="float16"), device="cpu").dtype == torch.float16


@pytest.mark.parametrize("place", ["./missing", "/no/such/place", "~/nowhere", "a/b/c", "missing"])
def test_a_missing_folder_is_named(place: str) -> None:
    with pytest.raises(CheckpointError, match=f"no model at '{place}': give an existing folder or a hub id"):
        load_model(place)


def test_a_hub_id_that_cannot_be_reached_is_one_clear_error() -> None:
    with pytest.raises(CheckpointError, match="nobody/nothing"):
        load_model("nobody/nothing")


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_model(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        load_model(tmp_path / "file")


def test_a_truncated_weights_file_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as a model"):
        load_model(folder)


def test_missing_weights_are_refused_not_invented(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of its weights.*layers\.1\.mlp\.up_proj"):
        load_model(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny.language_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_model(folder)


def test_a_broken_config_or_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        load_tokenizer(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as a model"):
        load_model(folder)


@pytest.mark.parametrize("device", ["tpu", "cuda:77"])
def test_an_unknown_device_names_what_there_is(folder: Path, device: str) -> None:
    with pytest.raises(SettingsError, match=f"device: there is no '{device}' on this machine; there is cpu"):
        load_model(folder, device=device)


def test_an_unknown_dtype_names_the_nearest(folder: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'bfloat16'"):
        load_model(folder, dtype="bflat16")


def test_gemma_2_keeps_its_soft_cap_where_transformers_would_drop_it(tmp_path: Path, monkeypatch) -> None:
    tiny.language_model("gemma2").save_pretrained(tmp_path)
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)  # as transformers 5.19 has it
    assert load_model(tmp_path).config._attn_implementation == "eager"
