"""Design, section 10: 12. A saved team says what the live one said; the router is also a plain checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from fusionroute import Team


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_saved_and_loaded_teams_have_the_same_logits(family: str, tmp_path: Path) -> None:
    team = tiny.team(family, prompt="chat_template")
    team.save_pretrained(tmp_path / "team", save_experts=True)
    loaded = Team.from_pretrained(tmp_path / "team")
    ids = torch.tensor(tiny.prompts(1, seed=31))
    for name, model in team.models.items():
        assert torch.equal(model(ids).logits, loaded.models[name](ids).logits)
    assert torch.equal(team.router(ids).route_logits, loaded.router(ids).route_logits)
    assert (loaded.expert_names, loaded.prompt) == (team.expert_names, "chat_template")
    (found,), (wanted,) = (each.generate(["hello"], max_new_tokens=8) for each in (loaded, team))
    assert found.token_ids == wanted.token_ids
    assert [record.expert for record in found.trace] == [record.expert for record in wanted.trace]


def test_the_router_is_a_normal_checkpoint(tmp_path: Path) -> None:
    team = tiny.team()
    team.save_pretrained(tmp_path / "team", save_experts=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "team" / "router")
    ids = torch.tensor(tiny.prompts(1, seed=32))
    assert torch.equal(plain(ids).logits, team.router(ids).logits)


def test_experts_are_saved_by_reference_in_order(tmp_path: Path) -> None:
    names = ("zeta", "alpha", "mid")
    team = tiny.team(names=names)
    experts = {}
    for name, expert in team.experts.items():
        expert.save_pretrained(tmp_path / name)
        team.tokenizer.save_pretrained(tmp_path / name)
        experts[name] = AutoModelForCausalLM.from_pretrained(tmp_path / name)
    Team(router=team.router, experts=experts, tokenizer=team.tokenizer).save_pretrained(tmp_path / "team")
    written = json.loads((tmp_path / "team" / "team.json").read_text())
    assert [entry["name"] for entry in written["experts"]] == list(names)
    assert [entry["model"] for entry in written["experts"]] == [str(tmp_path / name) for name in names]
    assert sorted(item.name for item in (tmp_path / "team").iterdir()) == ["README.md", "router", "team.json"]
    assert Team.from_pretrained(tmp_path / "team").expert_names == names
