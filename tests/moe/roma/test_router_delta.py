from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import tiny_moe
from fusionroute.errors import CheckpointError, OutputExistsError
from fusionroute.models.gates import Gates
from fusionroute.models.loading import load_model
from fusionroute.moe.roma.router_delta import (
    DELTA_FILE,
    BaseFiles,
    apply_delta,
    load_delta,
    save_delta,
    tensors_on_disk,
    write_tuned,
)
from tiny_roma import save_model, tensors

ON_DISK = {
    "mixtral": "model.layers.3.block_sparse_moe.gate.weight",
    **dict.fromkeys(("olmoe", "qwen3_moe", "qwen3_moe_plain", "deepseek_v2"), "model.layers.3.mlp.gate.weight"),
}


def tuned(folder: str | Path, seed: int = 7) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """The model at ``folder`` with other routers in its last two MoE layers, and these as they are called on disk."""
    model = load_model(str(folder), device="cpu")
    gates = Gates(model, 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in gates.parameters():
            weight += torch.randn(weight.shape, generator=generator).to(weight)
    return model, tensors_on_disk(model, gates.gates)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(20, 60)[None]).logits


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_a_tuned_checkpoint_differs_in_its_routers_alone(family: str, tmp_path: Path) -> None:
    save_model(tmp_path / "base", family)
    model, changed = tuned(tmp_path / "base")
    assert len(changed) == 2
    assert ON_DISK[family] in changed
    write_tuned(BaseFiles(tmp_path / "base"), changed, tmp_path / "tuned")
    before, after = tensors(tmp_path / "base"), tensors(tmp_path / "tuned")
    assert list(before) == list(after)
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(changed)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert torch.equal(logits(plain.eval()), logits(model))
    files = {path.name for path in (tmp_path / "base").iterdir()}
    assert {path.name for path in (tmp_path / "tuned").iterdir()} == files | {"README.md"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_keeps_dtypes_and_shards(dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", dtype=dtype, max_shard_size="100KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 2
    _, changed = tuned(base)
    write_tuned(BaseFiles(base), changed, tmp_path / "tuned")
    before, after = tensors(tmp_path / "base"), tensors(tmp_path / "tuned")
    assert {each.dtype for each in after.values()} == {dtype}
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(changed)
    assert all(torch.equal(after[name], each.to(dtype)) for name, each in changed.items())


def test_base_and_delta_are_the_full_save(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "mixtral", max_shard_size="100KB")
    _, changed = tuned(base)
    write_tuned(BaseFiles(base), changed, tmp_path / "full")
    file = save_delta(BaseFiles(base), changed, tmp_path / "delta")
    assert file == tmp_path / "delta" / DELTA_FILE
    saved, described = load_delta(file)
    assert saved.keys() == changed.keys()
    assert described["base_model"] == base
    for delta in (file, tmp_path / "delta"):
        made = apply_delta(base, delta, tmp_path / "applied", overwrite=True)
        for path in (tmp_path / "full").iterdir():
            if path.name != "README.md":  # which has the folder's name
                assert path.read_bytes() == (made / path.name).read_bytes(), path.name


def test_a_moved_base_is_the_same_base(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    save_delta(BaseFiles(base), tuned(base)[1], tmp_path / "delta")
    (tmp_path / "base").rename(tmp_path / "moved")
    apply_delta(tmp_path / "moved", tmp_path / "delta", tmp_path / "applied")


@pytest.mark.parametrize(
    ("other", "message"),
    [("seed", "other routers"), ("experts", "the same routers but other weights"), ("tuned", "other routers"),
     ("shape", r"is \[4, 32\] in .* and \[8, 32\] was tuned"), ("family", "has no tensor model.layers")],
)  # fmt: skip
def test_a_delta_of_another_base_is_refused(other: str, message: str, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    _, changed = tuned(base)
    save_delta(BaseFiles(base), changed, tmp_path / "delta")
    if other == "experts":
        model = load_model(base, device="cpu")
        with torch.no_grad():
            model.model.layers[0].mlp.experts.down_proj += 1
        model.save_pretrained(tmp_path / "other")
    elif other == "tuned":
        write_tuned(BaseFiles(base), changed, tmp_path / "other")
    else:
        options = {"seed": {"seed": 1}, "shape": {"num_experts": 4}, "family": {"family": "mixtral"}}
        save_model(tmp_path / "other", **options[other])  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=message):
        apply_delta(tmp_path / "other", tmp_path / "delta", tmp_path / "applied")
    assert not (tmp_path / "applied").exists()


def test_what_is_no_delta_is_refused(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    with pytest.raises(CheckpointError, match="no router delta at"):
        load_delta(tmp_path)
    with pytest.raises(CheckpointError, match="is no router delta of fusionroute"):
        load_delta(Path(base) / "model.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_delta(tmp_path / "broken.safetensors")


def test_what_is_no_base_is_refused(tmp_path: Path) -> None:
    base = Path(save_model(tmp_path / "base"))
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        BaseFiles(base)
    (base / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        BaseFiles(base)
    (base / "model.safetensors").write_bytes(whole)
    (base / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "somewhere/else"}')
    with pytest.raises(CheckpointError, match=r"is an adapter.*merge it into its base"):
        BaseFiles(base)


def test_quantised_routers_are_refused(tmp_path: Path) -> None:
    base = Path(save_model(tmp_path / "base"))
    stored, name = tensors(base), "model.layers.3.mlp.gate.weight"
    save_file({**stored, name: stored[name].to(torch.float8_e4m3fn)}, base / "model.safetensors")
    with pytest.raises(Exception, match=r"is stored as F8_E4M3; tune an unquantised checkpoint"):
        BaseFiles(base).require({name: stored[name]})


def test_a_base_of_the_hub_is_found_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same content under a hub id and in a folder is the same base."""
    hub = tmp_path / "hub" / "models--owner--name"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("0" * 40)
    local = save_model(hub / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base = BaseFiles("owner/name")
    _, changed = tuned(local)
    assert base.identity(changed) == BaseFiles(local).identity(changed)


def test_another_folder_is_not_written_over(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    with pytest.raises(OutputExistsError, match="already holds"):
        write_tuned(BaseFiles(base), tuned(base)[1], base)
