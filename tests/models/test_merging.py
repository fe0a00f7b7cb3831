from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import tiny
import tiny_adapters
from fusionroute import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.errors import CheckpointError, OutputExistsError, SettingsError, VocabularyError
from fusionroute.methods.single import Single
from fusionroute.models.adapters import location_of
from fusionroute.models.loading import ModelReference, load_model, load_tokenizer
from fusionroute.models.merging import merge_into_folder, merge_models
from fusionroute.ops.merging import MergeSettings
from fusionroute.zoo.build import weights_folder

SUM = MergeSettings(method="task_arithmetic")
EXPERTS = ("math", "code", "chat")


def save(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """A base and two experts."""
    return [save(tmp_path / f"model{seed}", tiny.language_model(seed=seed)) for seed in range(3)]


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters()}


def shipped(name: str) -> dict[str, Tensor]:
    return load_file(weights_folder(name) / "model.safetensors")


def test_every_parameter_is_merged(folders: list[Path]) -> None:
    base, *experts = [weights(tiny.language_model(seed=seed)) for seed in range(3)]
    merged = merge_models(folders[0], {"a": folders[1], "b": folders[2]}, MergeSettings(method="ties", density=0.5))
    found = weights(merged)
    assert found.keys() == base.keys()
    for name, weight in base.items():
        vectors = torch.stack([each[name] - weight for each in experts]).flatten(1)
        kept = int(0.5 * weight.numel())
        trimmed = torch.zeros_like(vectors)
        for row, vector in zip(trimmed, vectors, strict=True):
            largest = vector.abs().sort(descending=True).indices[:kept]
            row[largest] = vector[largest]
        agree = (trimmed.sign() == trimmed.sum(0).sign()) & (trimmed != 0)
        mean = (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)
        torch.testing.assert_close(found[name], weight + mean.view_as(weight), rtol=1e-5, atol=1e-6)
    assert not merged.training
    assert location_of(merged) == ""  # it is none of the models it was made of


def test_scale_zero_is_the_base_and_one_expert_is_that_expert(folders: list[Path]) -> None:
    merged = merge_models(folders[0], {"a": folders[1]}, MergeSettings(method="task_arithmetic", scale=0))
    for name, weight in weights(tiny.language_model(seed=0)).items():
        assert torch.equal(weights(merged)[name], weight)
    merged = merge_models(folders[0], {"a": folders[1]}, SUM)
    ids = torch.tensor([tiny.prompts(1)[0]])
    torch.testing.assert_close(merged(ids).logits, tiny.language_model(seed=1)(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_merged_once(tmp_path: Path, tied: bool) -> None:
    models = [tiny.language_model(seed=seed, tie_word_embeddings=tied) for seed in range(2)]
    folders = [save(tmp_path / str(at), model) for at, model in enumerate(models)]
    output = tmp_path / "merged"
    merge_into_folder(folders[0], {"a": folders[1]}, MergeSettings(method="task_arithmetic", scale=0.5), output)
    saved = load_file(output / "model.safetensors")
    assert ("lm_head.weight" in saved) is not tied
    for part in ("get_input_embeddings", "get_output_embeddings"):
        expected = sum(getattr(model, part)().weight.detach() / 2 for model in models)
        torch.testing.assert_close(getattr(load_model(output), part)().weight.detach(), expected)


def test_dare_draws_each_tensor_by_its_name(folders: list[Path]) -> None:
    dare = MergeSettings(method="dare", drop_rate=0.5)
    first, again, other = (
        weights(merge_models(folders[0], {"a": folders[1]}, each))
        for each in (dare, dare, MergeSettings(method="dare", drop_rate=0.5, seed=1))
    )
    base = weights(tiny.language_model(seed=0))
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(2)]
    for name in names:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    dropped = [first[name] == base[name] for name in names]
    assert not torch.equal(*dropped)  # one shape, but draws of their own


def test_an_adapter_is_an_expert(tmp_path: Path) -> None:
    base = tiny_adapters.save_base(tmp_path / "base")
    adapter = tiny_adapters.save_adapter(tmp_path / "adapter", base, seed=1)
    merged = merge_models(base, {"a": adapter}, SUM)
    expected = weights(tiny_adapters.merged(adapter))
    for name, weight in weights(merged).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(weight, expected[name]) for name, weight in weights(load_model(base)).items())


def test_the_zoos_experts_merge_into_a_normal_checkpoint(tmp_path: Path) -> None:
    output = tmp_path / "merged"
    told: list[tuple[str, int, int]] = []
    merge_into_folder(
        weights_folder("base"),
        {name: weights_folder(name) for name in EXPERTS},
        MergeSettings(method="task_arithmetic", scale=0.4),
        output,
        on_tensor=lambda *each: told.append(each),
    )
    saved, base = load_file(output / "model.safetensors"), shipped("base")
    for name, weight in base.items():
        vectors = [shipped(expert)[name].double() - weight.double() for expert in EXPERTS]
        assert torch.equal(saved[name], (weight.double() + 0.4 * sum(vectors)).float().half())  # rounded once
    assert [done for _, done, _ in told] == list(range(len(base)))
    assert {total for *_, total in told} == {len(base)}
    assert {name for name, *_ in told} == base.keys()

    model: Any = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.chat_template == load_tokenizer(weights_folder("base")).chat_template
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 12 + 30?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    (completion,) = Engine(Single(model, "merged"), tokenizer).generate(
        [prompt[0].tolist()], GenerationSettings(max_new_tokens=12)
    )
    expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
    assert completion.token_ids == expected[0, prompt.shape[1] :].tolist()
    card = (output / "README.md").read_text()
    assert "task_arithmetic: base + 0.4 × Σ (expert − base)" in card
    assert f"| expert code | {weights_folder('code')} | default |" in card


def test_dtype_is_the_bases_or_what_was_asked_for(tmp_path: Path) -> None:
    base, expert = weights_folder("base"), {"math": weights_folder("math")}
    assert merge_models(base, expert, SUM).dtype == torch.float16
    precise = merge_models(base, expert, SUM, dtype="float32")
    torch.testing.assert_close(weights(precise), {n: w.float() for n, w in shipped("math").items()})
    merge_into_folder(base, expert, SUM, tmp_path / "merged", dtype="bfloat16")
    assert load_model(tmp_path / "merged").dtype == torch.bfloat16
    with pytest.raises(SettingsError, match="did you mean 'bfloat16'"):
        merge_models(base, expert, SUM, dtype="bfloat61")


def test_files_stay_where_they_are_and_what_they_were(folders: list[Path]) -> None:
    before = [(folder / "model.safetensors").read_bytes() for folder in folders]
    merge_models(folders[0], {"a": folders[1], "b": ModelReference(model=str(folders[2]))}, SUM)
    assert [(folder / "model.safetensors").read_bytes() for folder in folders] == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"intermediate_size": 64}, r"mlp\.gate_proj\.weight is \[64, 32\] in expert 'bad' \(.*/bad\) and \[48, 32\]"),
        ({"vocab_size": 300}, r"model\.embed_tokens\.weight is \[300, 32\] .* whose vocabulary was not changed"),
        ({"num_hidden_layers": 4}, r"expert 'bad' \(.*/bad\) has a tensor model\.layers\.3.* and the base .* has none"),
        ({"num_hidden_layers": 2}, r"the base .* has a tensor model\.layers\.2.* and expert 'bad' .* has none"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True, the base .* has False: they compute differently"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}, "num_attention_heads 8, .* has 4"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_parameters .*5.0.* differently"),
    ],
)
def test_models_that_do_not_fit(folders: list[Path], tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    bad = save(tmp_path / "bad", tiny.language_model(**overrides))
    with pytest.raises(CheckpointError, match=message):
        merge_into_folder(folders[0], {"good": folders[1], "bad": bad}, SUM, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_another_architecture_and_another_tokenizer(folders: list[Path], tmp_path: Path) -> None:
    qwen = save(tmp_path / "qwen", tiny.language_model("qwen3"))
    with pytest.raises(CheckpointError, match=r"model_type 'qwen3', the base .* has 'llama'"):
        merge_models(folders[0], {"a": qwen}, SUM)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folders[2])
    with pytest.raises(VocabularyError, match=r"tokenizer of expert 'b' differs .*<new>"):
        merge_models(folders[0], {"a": folders[1], "b": folders[2]}, SUM)


def test_quantised_weights_are_refused(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantising libraries are not here, so an expert is cast to what one of them stores."""
    from fusionroute.models import merging

    def load(*arguments: Any, **options: Any) -> PreTrainedModel:
        model = load_model(*arguments, **options)
        return model.to(torch.float8_e4m3fn) if arguments[0].model.endswith("1") else model

    monkeypatch.setattr(merging, "load_model", load)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight of expert 'a' .* is quantised .*float8"):
        merge_models(folders[0], {"a": folders[1]}, SUM)


def test_nothing_to_merge_and_nothing_overwritten(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no experts"):
        merge_models(folders[0], {}, SUM)
    before = sorted(path.name for path in folders[1].iterdir())
    with pytest.raises(OutputExistsError, match="already holds"):
        merge_into_folder(folders[0], {"a": folders[2]}, SUM, folders[1])
    assert sorted(path.name for path in folders[1].iterdir()) == before
    merge_into_folder(folders[0], {"a": folders[2]}, SUM, folders[1], overwrite=True)
    assert (folders[1] / "README.md").is_file()
    assert not list(tmp_path.glob(".*"))
