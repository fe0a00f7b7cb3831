import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

import tiny
from fusionroute import Team
from fusionroute.engine.probe import bytes_per_token
from fusionroute.errors import UnsupportedModelError

SMALL = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "bos_token_id": 1, "eos_token_id": tiny.EOS}


def test_bytes_per_token_are_keys_and_values_of_every_layer() -> None:
    layers, heads, size, float32 = 3, 2, 8, 4
    assert bytes_per_token(tiny.language_model("llama"), "math") == 2 * layers * heads * size * float32


def test_a_recurrent_model_is_refused_when_the_team_is_built() -> None:
    mamba = MambaForCausalLM(MambaConfig(**SMALL, num_hidden_layers=2))
    with pytest.raises(UnsupportedModelError, match=r"'code' \(MambaForCausalLM\) cannot take turns: .* cut back"):
        Team(router=tiny.router(num_experts=1), experts={"code": mamba}, tokenizer=tiny.tokenizer())


def test_a_model_that_takes_no_mask_per_row_is_refused() -> None:
    bloom = BloomForCausalLM(BloomConfig(**SMALL, n_layer=2, n_head=4))
    with pytest.raises(UnsupportedModelError, match=r"'chat' \(BloomForCausalLM\) cannot take turns"):
        bytes_per_token(bloom, "chat")


def test_a_model_that_ignores_its_cache_is_refused() -> None:
    model = tiny.language_model("llama")
    plain = model.forward
    model.forward = lambda *args, past_key_values=None, **kwargs: plain(*args, **kwargs)
    with pytest.raises(UnsupportedModelError, match="'math'"):
        bytes_per_token(model, "math")


def test_an_attention_without_row_masks_is_refused() -> None:
    model = tiny.language_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="load it with 'sdpa'"):
        bytes_per_token(model, "math")


def test_eager_attention_is_fine() -> None:
    assert bytes_per_token(tiny.language_model("llama", attn_implementation="eager"), "math") > 0


def test_bfloat16_is_fine() -> None:
    assert bytes_per_token(tiny.language_model("llama").to(torch.bfloat16), "math") == 2 * 3 * 2 * 8 * 2
