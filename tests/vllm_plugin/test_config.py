"""What vLLM reads from the config of an exported team."""

import json
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import EngineArgs

import tiny
import tiny_exported
from fusionroute import Team
from fusionroute.errors import SettingsError
from fusionroute.vllm_plugin.checks import _check_heads
from fusionroute.vllm_plugin.config import FusionRouteConfig

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


def config_of(folder: Path) -> FusionRouteConfig:
    return FusionRouteConfig(**json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("who", ["router", "expert"])
def test_a_scaled_rope_makes_the_context_no_longer(who: str, tmp_path: Path) -> None:
    """The context of our engine, whatever vLLM would make of the router alone."""
    scaled: dict[str, Any] = {"rope_parameters": LINEAR, "max_position_embeddings": 512}
    lm = tiny_exported.model("llama", 100, **(scaled if who == "router" else {"max_position_embeddings": 512}))
    expert = tiny_exported.model("llama", 0, **({} if who == "router" else scaled))
    team = tiny_exported.together(lm, {"one": expert})
    folder = tiny_exported.exported(team, tmp_path)
    found = EngineArgs(model=str(folder), dtype="float32").create_model_config()
    assert found.max_model_len == min(each.config.max_position_embeddings for each in (lm, expert))
    router, one = config_of(folder).parts
    assert (router if who == "router" else one).rope_parameters["factor"] == 4.0, "the model itself keeps it"


def test_the_scaling_of_single_kinds_of_layers_goes_too() -> None:
    team = Team(router=tiny.router("gemma3"), experts=tiny.experts(), tokenizer=tiny.tokenizer())
    lm = team.router.lm.config.to_dict()
    lm["rope_parameters"]["full_attention"] = LINEAR
    values = {"router": lm, "experts": [{"name": "a", "folder": "experts/a", "config": lm}]}
    files = dict.fromkeys(("model.safetensors", "router/x.safetensors", "experts/a/x.safetensors"), 1)
    text = FusionRouteConfig(team=values | {"weight_files": files}).get_text_config()
    assert text.rope_parameters["full_attention"] == {"rope_type": "default", "rope_theta": 10000.0}


def test_heads_that_processes_cannot_share_are_told_by_model(tmp_path: Path) -> None:
    config = config_of(tiny_exported.exported(tiny_exported.team("mixed"), tmp_path))
    _check_heads(config, 2)
    with pytest.raises(ValueError, match=r"the router has 4 attention heads .* shared among 3 processes"):
        _check_heads(config, 3)
    config.team["experts"][1]["config"]["num_attention_heads"] = 6
    with pytest.raises(ValueError, match=r"expert '7' has 6 attention heads .* shared among 4 processes"):
        _check_heads(config, 4)


def test_a_model_that_this_transformers_does_not_know_is_named(tmp_path: Path) -> None:
    config = config_of(tiny_exported.exported(tiny_exported.team("mixed"), tmp_path))
    config.team["experts"][1]["config"]["model_type"] = "new_llama"
    with pytest.raises(SettingsError, match="expert '7' is of model_type 'new_llama'"):
        _ = config.parts
