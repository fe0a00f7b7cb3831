"""The shipped models load, and a small build works, repeats itself, resumes and keeps out of folders in use."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusionroute.zoo.build import MODELS, WEIGHTS, build, weights_folder
from fusionroute.zoo.recipe import Recipe

TINY = 0.002


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    build(folder, scale=TINY)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_shipped_models_load(name: str):
    model = AutoModelForCausalLM.from_pretrained(weights_folder(name))
    tokenizer = AutoTokenizer.from_pretrained(weights_folder(name))
    assert model.num_parameters() < 1_000_000
    assert model.dtype == torch.float16
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert len(tokenizer) == model.config.vocab_size


def test_shipped_models_share_one_vocabulary():
    vocabularies = [AutoTokenizer.from_pretrained(weights_folder(name)).get_vocab() for name in MODELS]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_shipped_weights_are_small_and_the_recorded_ones():
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) < 20 * 2**20
    record = json.loads((WEIGHTS / "recipe.json").read_text())
    for name in MODELS:
        weights = (weights_folder(name) / "model.safetensors").read_bytes()
        assert hashlib.sha256(weights).hexdigest() == record["sha256"][name]
    assert record["recipe"] == Recipe().as_json(), "the recipe has changed: build the weights again"


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="no model 'maths'; choose one of base, math, code, chat"):
        weights_folder("maths")


def test_a_small_build_writes_every_model(built: Path):
    assert {path.name for path in built.iterdir()} == {*MODELS, "recipe.json"}
    assert set(json.loads((built / "recipe.json").read_text())["sha256"]) == set(MODELS)
    AutoModelForCausalLM.from_pretrained(built / "chat")


def test_building_again_gives_the_same_weights(built: Path, tmp_path: Path):
    build(tmp_path, scale=TINY)
    assert (tmp_path / "recipe.json").read_text() == (built / "recipe.json").read_text()


def test_an_interrupted_build_goes_on_where_it_stopped(built: Path, tmp_path: Path):
    trained: list[str] = []

    def stop_at_code(name: str, step: int, steps: int) -> None:
        if name == "code":
            raise KeyboardInterrupt
        trained.append(name)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, scale=TINY, progress=stop_at_code)
    assert set(trained) == {"base", "math"}
    assert not (tmp_path / "code").exists()
    resumed: list[str] = []
    build(tmp_path, scale=TINY, progress=lambda name, step, steps: resumed.append(name))
    assert set(resumed) == {"code", "chat"}
    assert (tmp_path / "recipe.json").read_text() == (built / "recipe.json").read_text()


def test_a_folder_in_use_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty"):
        build(tmp_path, scale=TINY)


def test_a_build_with_other_settings_is_refused(built: Path):
    with pytest.raises(ValueError, match="other settings"):
        build(built, scale=TINY, seed=1)
