import json
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
import tiny_adapters
from fusionroute.errors import CheckpointError, SettingsError
from fusionroute.models.adapters import add_lora, location_of, over_same_weights
from fusionroute.models.loading import ModelReference, load_model, load_tokenizer, save_model

IDS = torch.tensor([[5, 6, 7, 8], [8, 7, 6, 5]])
LINEAR = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
CONFIGS = {
    "lora": peft.LoraConfig(r=4, lora_alpha=8, **LINEAR),
    "rslora": peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True, **LINEAR),
    "dora": peft.LoraConfig(r=4, lora_alpha=8, use_dora=True, **LINEAR),
    "loha": peft.LoHaConfig(r=4, alpha=8, **LINEAR),
    "lokr": peft.LoKrConfig(r=4, alpha=8, **LINEAR),
    "embeddings": peft.LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"], task_type="CAUSAL_LM"),
    "whole module": peft.LoraConfig(r=4, modules_to_save=["lm_head"], **LINEAR),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_adapters.save_base(tmp_path_factory.mktemp("adapters") / "base")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return tiny_adapters.save_adapter(tmp_path / "adapter", base)


def rewrite(folder: Path, **values: object) -> None:
    """Change the adapter's config; None removes a value."""
    path = folder / "adapter_config.json"
    kept = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")  # peft, where it saves them
def test_an_adapter_over_its_base_says_what_merging_it_says(name: str, base: Path, tmp_path: Path) -> None:
    folder = tiny_adapters.save_adapter(tmp_path, base, config=CONFIGS[name])
    wanted = logits(tiny_adapters.merged(folder))
    assert (wanted - logits(load_model(base))).abs().max() > 0.1, "the adapter must matter"
    torch.testing.assert_close(logits(load_model(folder)), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(load_model(folder, merge_adapter=True)), wanted, rtol=1e-4, atol=1e-4)


def test_a_loaded_adapter_answers_for_its_base_and_knows_where_it_came_from(folder: Path, base: Path) -> None:
    model = load_model(folder)
    assert not model.training
    assert (model.device.type, model.dtype, model.name_or_path) == ("cpu", torch.float32, str(folder))
    assert model.config.get_text_config().vocab_size == tiny.VOCABULARY
    assert model.generation_config.eos_token_id == tiny.EOS
    assert all(weight.requires_grad == ("lora_" in name) for name, weight in model.named_parameters())
    whole = load_model(folder, merge_adapter=True)
    assert (type(whole).__name__, whole.name_or_path) == ("LlamaForCausalLM", str(folder))


def test_dtype_is_the_bases_and_adapters_stay_in_float32(folder: Path) -> None:
    model = load_model(ModelReference(model=str(folder), dtype="bfloat16"))
    assert model.dtype == torch.bfloat16
    assert {weight.dtype for name, weight in model.named_parameters() if "lora_" in name} == {torch.float32}
    assert model(IDS).logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits(model).float(), logits(load_model(folder)), rtol=0.1, atol=0.5)


def test_half_precision_adapter_files_are_read_as_float32(folder: Path) -> None:
    weights = {key: weight.half() for key, weight in load_file(folder / "adapter_model.safetensors").items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    model = load_model(folder)
    adapter = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    assert {(weight.dtype, weight.requires_grad) for weight in adapter.values()} == {(torch.float32, True)}


def test_the_tokenizer_is_the_adapters_own_or_else_its_bases(folder: Path) -> None:
    assert load_tokenizer(folder).get_vocab() == tiny.tokenizer().get_vocab()
    own = tiny.tokenizer()
    own.add_tokens(["<extra>"])
    own.save_pretrained(folder)
    assert "<extra>" in load_tokenizer(folder).get_vocab()


def test_an_adapter_may_have_ends_of_its_own(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    model.generation_config.eos_token_id = [tiny.EOS, 9]
    save_model(model, tmp_path / "again")
    assert load_model(tmp_path / "again").generation_config.eos_token_id == [tiny.EOS, 9]
    assert load_model(folder).generation_config.eos_token_id == tiny.EOS


def test_a_saved_adapter_is_the_same_for_us_and_for_peft(folder: Path, base: Path, tmp_path: Path) -> None:
    save_model(load_model(folder), tmp_path / "again")
    names = {item.name for item in (tmp_path / "again").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "generation_config.json"}
    assert torch.equal(logits(load_model(tmp_path / "again")), logits(load_model(folder)))
    assert torch.equal(logits(tiny_adapters.merged(tmp_path / "again")), logits(tiny_adapters.merged(folder)))


def test_a_model_over_the_same_weights_can_be_cast_and_adapted_alone(base: Path) -> None:
    model = load_model(base)
    before = logits(model)
    other = over_same_weights(model)
    assert [w.data_ptr() for w in other.parameters()] == [w.data_ptr() for w in model.parameters()]
    tiny_adapters.adapted(other)
    over_same_weights(model).to(torch.bfloat16)
    over_same_weights(model).requires_grad_(False)
    assert torch.equal(logits(model), before)
    assert all(weight.requires_grad for weight in model.parameters())


def test_tied_weights_stay_tied_and_shared(tmp_path: Path) -> None:
    model = over_same_weights(tiny.language_model(tie_word_embeddings=True))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_only_what_names_the_same_checkpoint_dtype_and_device_is_shared(folder: Path, base: Path) -> None:
    loaded: dict = {}
    first, second, half = (load_model(folder, dtype=dtype, loaded=loaded) for dtype in (None, None, "bfloat16"))
    alone = load_model(folder)
    plain = load_model(base, loaded=loaded)

    def place(model) -> int:
        return model.get_input_embeddings().weight.data_ptr()

    assert place(first) == place(second) == place(plain)
    assert len({place(model) for model in (first, half, alone)}) == 3


def test_merging_leaves_the_sharers_alone(folder: Path) -> None:
    loaded: dict = {}
    shared = load_model(folder, loaded=loaded)
    before = logits(shared)
    load_model(folder, loaded=loaded, merge_adapter=True)
    assert torch.equal(logits(shared), before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_model_name_or_path": None}, "names no base"),
        ({"base_model_name_or_path": "/no/such/base"}, r"whose base cannot be used: no model at '/no/such/base'"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}, "PROMPT_TUNING puts virtual tokens before the text"),
        ({"peft_type": "IA3"}, "IA3 is not one of LORA, LOHA, LOKR"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 also changes the weights of its base"),
        ({"alora_invocation_tokens": [5]}, "works from a certain token on"),
        ({"task_type": "SEQ_CLS"}, "made for SEQ_CLS"),
        ({"target_modules": ["query_key_value"]}, "does not fit its base"),
        ({"target_modules": ["q_proj"]}, r"does not fit its base .*weights have no counterpart"),
        ({"target_modules": ["q_proj", "k_proj", "lm_head"]}, r"does not fit its base .*weights have no counterpart"),
        ({"r": 5}, r"does not fit its base .*size mismatch"),
    ],
)
def test_an_adapter_that_cannot_be_used_says_why(values: dict, message: str, folder: Path) -> None:
    rewrite(folder, **values)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_an_adapter_for_another_shape_or_architecture_is_refused(folder: Path, tmp_path: Path) -> None:
    for name, other in (("wide", {"intermediate_size": 64}), ("shallow", {"num_hidden_layers": 2})):
        rewrite(folder, base_model_name_or_path=str(tiny_adapters.save_base(tmp_path / name, **other)))
        with pytest.raises(CheckpointError, match="does not fit its base"):
            load_model(folder)


def test_an_adapter_over_an_adapter_is_refused(folder: Path, base: Path, tmp_path: Path) -> None:
    other = tiny_adapters.save_adapter(tmp_path / "other", base)
    rewrite(other, base_model_name_or_path=str(folder))
    with pytest.raises(CheckpointError, match="which is an adapter itself; merge that one"):
        load_model(other)


def test_an_adapter_that_changed_the_vocabulary_is_refused(base: Path, tmp_path: Path) -> None:
    model = tiny_adapters.adapted(tiny.language_model())
    model.get_base_model().resize_token_embeddings(270)
    model.peft_config["default"].base_model_name_or_path = str(base)
    with pytest.warns(UserWarning, match="embedding layer has been resized"):
        model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"replaces .* of its base, \[261, 32\] by \[270, 32\]: its vocabulary"):
        load_model(tmp_path)


def test_a_broken_adapter_is_refused(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="does not fit its base"):
        load_model(folder)
    weights.unlink()
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        load_model(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        load_model(folder)


def test_without_peft_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SettingsError, match=r"is an adapter, which needs peft: pip install 'fusionroute\[peft\]'"):
        load_model(folder)
    with pytest.raises(SettingsError, match=r"pip install 'fusionroute\[peft\]'"):
        add_lora(tiny.language_model(), rank=2, alpha=4)


def test_a_new_lora_has_no_effect_yet_and_alone_is_trained(base: Path) -> None:
    plain = load_model(base)
    lm = add_lora(load_model(base), rank=2, alpha=4, targets=["q_proj", "lm_head"])
    assert torch.equal(logits(lm), logits(plain))
    trained = [name for name, weight in lm.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * (3 + 1), "two factors for q_proj of three layers, and for the LM head"
    assert all("lora_" in name for name in trained)
    config = lm.peft_config["default"]
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (2, 4, str(base))


def test_the_revision_of_the_base_is_kept(base: Path, tmp_path: Path) -> None:
    lm = add_lora(load_model(ModelReference(model=str(base), revision="v1")), rank=2, alpha=4)
    save_model(lm, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["revision"] == "v1"
    assert load_model(ModelReference(model=str(tmp_path), revision="v2")).revision == "v2", "its own, not its base's"


def test_all_linear_leaves_out_the_lm_head(base: Path) -> None:
    lm = add_lora(load_model(base), rank=2, alpha=4)
    assert len([name for name, _ in lm.named_parameters() if "lora_A" in name]) == 3 * 7


def test_loras_that_make_no_sense_are_refused(base: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"targets \['query'\] do not fit LlamaForCausalLM"):
        add_lora(load_model(base), rank=2, alpha=4, targets=["query"])
    for merge_adapter in (False, True):
        with pytest.raises(SettingsError, match="is an adapter, and one over it would have no base to name"):
            add_lora(load_model(folder, merge_adapter=merge_adapter), rank=2, alpha=4)
    with pytest.raises(SettingsError, match="base of the adapter was built in code"):
        save_model(add_lora(tiny.language_model(), rank=2, alpha=4), tmp_path / "new")


def test_an_adapter_that_peft_loaded_itself_does_not_pass_for_its_base(base: Path) -> None:
    model = tiny_adapters.adapted(base)
    assert model.name_or_path == str(base)
    assert location_of(model) == ""
    assert location_of(load_model(base)) == str(base)
