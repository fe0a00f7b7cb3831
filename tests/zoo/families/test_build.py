"""The shipped families load and answer; a small build works, repeats itself, resumes and spares folders in use."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.methods.single import Single
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.prompt import PromptFormat
from fusionroute.zoo.build import WEIGHTS, weights_folder
from fusionroute.zoo.families import FAMILIES
from fusionroute.zoo.families.build import RECORD, build_families
from fusionroute.zoo.families.recipe import FamilyRecipe
from fusionroute.zoo.tasks import check, examples

TINY = 0.002
ENDS = {"byte_bpe": ["<|im_end|>"], "piece_bpe": ["</s>"], "unigram": ["<end_of_turn>", "<eos>"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    build_families(folder, scale=TINY)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_shipped_models_load(name: str):
    model = AutoModelForCausalLM.from_pretrained(weights_folder(name))
    tokenizer = AutoTokenizer.from_pretrained(weights_folder(name))
    assert model.num_parameters() < 1_000_000
    assert model.dtype == torch.float16
    assert model.config.max_position_embeddings == 512
    assert len(tokenizer) == model.config.vocab_size
    ends = model.generation_config.eos_token_id
    assert tokenizer.convert_ids_to_tokens([ends] if isinstance(ends, int) else ends) == ENDS[name]


def test_shipped_weights_are_small_and_the_recorded_ones():
    record = json.loads((WEIGHTS / RECORD).read_text())
    for name in FAMILIES:
        weights = (weights_folder(name) / "model.safetensors").read_bytes()
        assert len(weights) < 2 * 2**20
        assert hashlib.sha256(weights).hexdigest() == record["sha256"][name]
    assert record["recipe"] == json.loads(json.dumps(FamilyRecipe().as_json())), "the recipe has changed: build again"


@pytest.mark.parametrize("name", FAMILIES)
def test_shipped_models_answer_and_stop(name: str):
    model, tokenizer = load_model(weights_folder(name)), load_tokenizer(weights_folder(name))
    asked = examples("short_ledger", "test", 12)
    prompts = [PromptFormat(tokenizer, "chat_template").encode(example.prompt) for example in asked]
    answers = Engine(Single(model, name), tokenizer).generate(prompts, GenerationSettings(max_new_tokens=160))
    assert sum(check(asked, [answer.text for answer in answers])) >= 6
    assert {answer.finish_reason for answer in answers} == {"stop"}


def test_a_small_build_writes_every_model(built: Path):
    assert {path.name for path in built.iterdir()} == {*FAMILIES, RECORD}
    assert set(json.loads((built / RECORD).read_text())["sha256"]) == set(FAMILIES)


def test_building_again_gives_the_same_weights_and_an_interrupted_build_goes_on(built: Path, tmp_path: Path):
    def stop_at_unigram(name: str, step: int, steps: int) -> None:
        if name == "unigram":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_families(tmp_path, scale=TINY, progress=stop_at_unigram)
    assert not (tmp_path / "unigram").exists()
    resumed: list[str] = []
    build_families(tmp_path, scale=TINY, progress=lambda name, step, steps: resumed.append(name))
    assert set(resumed) == {"unigram"}
    assert (tmp_path / RECORD).read_text() == (built / RECORD).read_text()


def test_a_folder_in_use_is_refused(built: Path, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=f"is not empty and holds no {RECORD}"):
        build_families(tmp_path, scale=TINY)
    with pytest.raises(ValueError, match="other settings"):
        build_families(built, scale=TINY, seed=1)
