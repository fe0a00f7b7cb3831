from pathlib import Path

import pytest
import torch

import tiny
from fusionroute import Router
from fusionroute.errors import CheckpointError, SettingsError

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
