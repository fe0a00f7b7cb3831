from pathlib import Path

import pytest
import torch

import tiny
import tiny_adapters
from fusionroute import Router
from fusionroute.errors import CheckpointError, SettingsError
from fusionroute.models.adapters import add_lora
from fusionroute.models.loading import load_model

IDS = torch.tensor([[5, 6, 7, 8], [8, 7, 6, 5]])


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_both_outputs_come_from_the_final_hidden_state_after_the_norm(family: str) -> None:
    router = tiny.router(family)
    plain = router.lm(IDS, output_hidden_states=True)
    found = router(IDS)
    torch.testing.assert_close(found.logits, plain.logits)
    torch.testing.assert_close(found.route_logits, plain.hidden_states[-1] @ router.route_head.weight.T)
    last = router(IDS, logits_to_keep=2)
    torch.testing.assert_close(last.logits, plain.logits[:, -2:])
    torch.testing.assert_close(last.route_logits, found.route_logits[:, -2:])


def test_the_head_has_no_bias_by_default_and_the_printed_size() -> None:
    assert tiny.router().route_head.bias is None
    assert tiny.router().route_head.weight.shape == (3, 32)
    assert Router(tiny.language_model(), 2, bias=True).route_head.bias.tolist() == [0, 0]


def test_routing_is_float32_whatever_the_language_model_is() -> None:
    router = Router(tiny.language_model().bfloat16(), 3)
    assert router(IDS).route_logits.dtype == torch.float32


def test_gradients_reach_the_language_model_through_the_head() -> None:
    router = tiny.router()
    router(IDS).route_logits.square().sum().backward()
    assert router.lm.get_input_embeddings().weight.grad.any()
    assert router.lm.get_output_embeddings().weight.grad is None


@pytest.mark.parametrize("bias", [False, True])
def test_a_saved_router_is_the_same(bias: bool, tmp_path: Path) -> None:
    router = Router(tiny.language_model(), 3, bias=bias).eval()
    router.save_pretrained(tmp_path)
    loaded = Router.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS).route_logits, router(IDS).route_logits)
    assert torch.equal(loaded(IDS).logits, router(IDS).logits)


def test_a_folder_without_a_head_or_with_a_broken_one_is_refused(tmp_path: Path) -> None:
    tiny.language_model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no route_head\.safetensors"):
        Router.from_pretrained(tmp_path)
    (tmp_path / "route_head.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="is corrupt"):
        Router.from_pretrained(tmp_path)


def test_a_head_of_another_router_is_refused(tmp_path: Path) -> None:
    Router(tiny.language_model(hidden_size=16, num_attention_heads=2), 3).save_pretrained(tmp_path)
    tiny.language_model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="reads 16 features but the LM has 32"):
        Router.from_pretrained(tmp_path)


def test_a_router_needs_an_expert() -> None:
    with pytest.raises(SettingsError, match="num_experts=0"):
        Router(tiny.language_model(), 0)


def lora_router(base: Path, *, dropout: float = 0.0) -> Router:
    """A trained one: neither factor is zero."""
    router = Router(add_lora(load_model(base), rank=4, alpha=8, dropout=dropout), 3)
    torch.manual_seed(5)
    for weight in router.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.3)
    return router.eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_adapters.save_base(tmp_path_factory.mktemp("router") / "base")


def test_a_router_with_lora_routes_by_the_adapted_hidden_state(base: Path) -> None:
    router = lora_router(base)
    plain = router.lm(IDS, output_hidden_states=True)
    assert (plain.logits - load_model(base)(IDS).logits).abs().max() > 0.1
    torch.testing.assert_close(router(IDS).logits, plain.logits)
    torch.testing.assert_close(router(IDS).route_logits, plain.hidden_states[-1] @ router.route_head.weight.T)
    assert (router.device.type, router.dtype, router.config.hidden_size) == ("cpu", torch.float32, 32)
    assert router.generation_config.eos_token_id == tiny.EOS


def test_of_a_router_with_lora_only_adapter_and_head_are_trained(base: Path) -> None:
    router = lora_router(base)
    trained = {name for name, weight in router.named_parameters() if weight.requires_grad}
    assert trained == {name for name in router.state_dict() if "lora_" in name or name == "route_head.weight"}
    router(IDS).route_logits.square().sum().backward()
    assert all(weight.grad.any() for name, weight in router.named_parameters() if "layers" in name and name in trained)


def test_a_saved_router_with_lora_is_small_and_the_same(base: Path, tmp_path: Path) -> None:
    router = lora_router(base)
    router.save_pretrained(tmp_path)
    names = {"adapter_config.json", "adapter_model.safetensors", "generation_config.json", "route_head.safetensors"}
    assert {item.name for item in tmp_path.iterdir()} == names
    loaded = Router.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS).route_logits, router(IDS).route_logits)
    assert torch.equal(loaded(IDS).logits, router(IDS).logits)
    assert loaded.state_dict().keys() == router.state_dict().keys(), "a checkpoint is read into a router in training"
    trained = [name for name, weight in loaded.named_parameters() if weight.requires_grad]
    assert trained == [name for name, weight in router.named_parameters() if weight.requires_grad]


@pytest.mark.parametrize("kind", ["plain", "tied", "lora"])
def test_gathered_weights_are_saved_instead_of_the_live_ones(kind: str, base: Path, tmp_path: Path) -> None:
    if kind == "lora":
        router = lora_router(base)
    else:
        router = Router(tiny.language_model(tie_word_embeddings=kind == "tied"), 3, bias=True).eval()
    gathered = {name: tensor * 1.5 for name, tensor in router.state_dict().items()}
    router.save_pretrained(tmp_path, state_dict=gathered)
    with torch.no_grad():
        for name, weight in router.named_parameters():
            if kind != "lora" or "lora_" in name or "route_head" in name:  # a base is never saved
                weight.mul_(1.5)
    loaded = Router.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS).logits, router(IDS).logits)
    assert torch.equal(loaded(IDS).route_logits, router(IDS).route_logits)


@pytest.mark.parametrize("options", [{}, {"activation_checkpointing_kwargs": {"use_reentrant": True}}])
@pytest.mark.parametrize("kind", ["plain", "lora"])
def test_recomputed_activations_give_the_same_gradients(kind: str, options: dict, base: Path) -> None:
    router = lora_router(base) if kind == "lora" else tiny.router()
    router.train()

    def gradients() -> dict[str, torch.Tensor]:
        router.zero_grad()
        outputs = router(IDS, use_cache=False)
        (outputs.route_logits.square().sum() + outputs.logits.square().mean()).backward()
        return {name: weight.grad.clone() for name, weight in router.named_parameters() if weight.grad is not None}

    kept = gradients()
    router.activation_checkpointing_enable(**options)
    assert router.lm.is_activation_checkpointing
    recomputed = gradients()
    assert len(kept) == len([weight for weight in router.parameters() if weight.requires_grad])
    assert all(gradient.any() for gradient in kept.values())
    torch.testing.assert_close(recomputed, kept)
    router.activation_checkpointing_disable()
    assert not router.lm.is_activation_checkpointing


def test_the_older_names_of_checkpointing_work_too(base: Path) -> None:
    router = lora_router(base)
    router.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert router.lm.is_activation_checkpointing
    router.gradient_checkpointing_disable()
    assert not router.lm.is_activation_checkpointing


def test_sharding_learns_from_the_router_what_a_layer_is(base: Path) -> None:
    assert set(tiny.router()._no_split_modules) == {"LlamaDecoderLayer"}
    assert set(lora_router(base)._no_split_modules) == {"LlamaDecoderLayer"}
