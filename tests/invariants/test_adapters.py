"""Experts that are adapters over one base stand in memory once, and say what experts of their own weights say."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
import tiny_adapters
from fusionroute import GenerationSettings, Router, Team
from fusionroute.engine.reference import UncachedRunner, reference
from fusionroute.errors import CheckpointError, VocabularyError
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.models.adapters import add_lora
from fusionroute.models.fingerprint import model_fingerprint
from fusionroute.models.loading import ModelReference, load_model
from fusionroute.training.planning.precheck import check_models_fit, load_config
from fusionroute.training.scoring.scores import score_batch

NAMES = ("math", "code", "chat")
IDS = torch.tensor([[5, 6, 7, 8], [8, 7, 6, 5]])


def write_world(folder: Path, family: str) -> Path:
    """A base, three adapters over it, and a team folder whose router is an adapter over it too."""
    base = tiny_adapters.save_base(folder / "base", family)
    for seed, name in enumerate(NAMES):
        tiny_adapters.save_adapter(folder / name, base, seed)
    experts = [{"name": name, "model": str(folder / name)} for name in NAMES]
    (folder / "team").mkdir()
    (folder / "team" / "team.json").write_text(json.dumps({"experts": experts, "prompt": None}))
    router = Router(add_lora(load_model(base), rank=4, alpha=8), len(NAMES))
    torch.manual_seed(7)
    for weight in router.parameters():
        torch.nn.init.normal_(weight, std=0.3) if weight.requires_grad else None
    torch.nn.init.normal_(router.route_head.weight)
    router.save_pretrained(folder / "team" / "router")
    tiny.tokenizer().save_pretrained(folder / "team" / "router")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def team(world: Path) -> Team:
    return Team.from_pretrained(world / "team")


def merged_team(world: Path) -> Team:
    """The same models, each with all its weights, merged by peft."""
    router = Router(tiny_adapters.merged(world / "team" / "router"), len(NAMES))
    router.route_head.load_state_dict(Router.from_pretrained(world / "team" / "router").route_head.state_dict())
    experts = {name: tiny_adapters.merged(world / name) for name in NAMES}
    return Team(router=router, experts=experts, tokenizer=tiny.tokenizer())


def bytes_once(models: Iterable[torch.nn.Module]) -> int:
    """Parameters and buffers, each piece of memory counted once."""
    found: dict[int, int] = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found.values())


def adapter_weights(model: torch.nn.Module) -> list[Tensor]:
    return [weight for name, weight in model.named_parameters() if "lora_" in name]


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # the second slides, caps its logits and ties its embeddings
def test_sharing_experts_write_what_merged_experts_write(family: str, tmp_path: Path) -> None:
    world = write_world(tmp_path, family)
    sharing, merged = Team.from_pretrained(world / "team"), merged_team(world)
    for complement in (True, False):
        options = {"complement": complement, "max_batch": 5, "max_new_tokens": 10}
        found, wanted = (each.generate(tiny.prompts(10, seed=8), **options) for each in (sharing, merged))
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.token_ids == theirs.token_ids
            assert [record.expert for record in mine.trace] == [record.expert for record in theirs.trace]
        assert {record.expert for completion in found for record in completion.trace} == set(NAMES)
    assert any(len({record.expert for record in completion.trace}) > 1 for completion in found), "experts take turns"


def test_sharing_experts_in_the_engine_write_what_the_reference_writes(team: Team) -> None:
    prompts, settings = tiny.prompts(5, seed=9), GenerationSettings(max_new_tokens=8)
    slow = FusionRoute(team, make_runner=UncachedRunner)
    wanted = [reference(slow, team.engine().sequence(prompt, settings)) for prompt in prompts]
    found = team.generate(prompts, max_new_tokens=8)
    assert [completion.token_ids for completion in found] == [completion.token_ids for completion in wanted]


def test_no_expert_sees_another_ones_adapter(team: Team, world: Path) -> None:
    alone = {name: load_model(world / name)(IDS).logits for name in NAMES}
    alone["router"] = Router.from_pretrained(world / "team" / "router")(IDS).logits
    for name in ("math", "router", "code", "math", "chat", "router", "math"):
        assert torch.equal(team.models[name](IDS).logits, alone[name])
    assert all((alone["math"] - alone[other]).abs().max() > 0.1 for other in ("code", "chat", "router"))


def test_the_base_stands_in_memory_once(team: Team, world: Path) -> None:
    models = [team.router.lm, *team.experts.values()]
    bases = [
        {weight.data_ptr() for name, weight in model.named_parameters() if "lora_" not in name} for model in models
    ]
    assert bases[0]
    assert all(base == bases[0] for base in bases)
    base = bytes_once([load_model(world / "base")])
    adapters = sum(weight.nbytes for model in models for weight in adapter_weights(model))
    assert bytes_once(models) == base + adapters


def test_a_base_that_is_an_expert_itself_is_shared_too(world: Path, tmp_path: Path) -> None:
    file = json.loads((world / "team" / "team.json").read_text())
    file["router"] = str(world / "team" / "router")
    file["experts"][2] = {"name": "plain", "model": str(world / "base")}
    (tmp_path / "team.json").write_text(json.dumps(file))
    team = Team.from_pretrained(tmp_path)
    assert (
        len({model.get_input_embeddings().weight.data_ptr() for model in (team.router.lm, *team.experts.values())}) == 1
    )
    assert torch.equal(team.experts["plain"](IDS).logits, load_model(world / "base")(IDS).logits)


@pytest.mark.parametrize("save_experts", [False, True])
def test_a_saved_team_of_adapters_is_the_same_and_small(
    save_experts: bool, team: Team, world: Path, tmp_path: Path
) -> None:
    team.save_pretrained(tmp_path / "team", save_experts=save_experts)
    entries = json.loads((tmp_path / "team" / "team.json").read_text())["experts"]
    wanted = [f"experts/{name}" if save_experts else str(world / name) for name in NAMES]
    assert [entry["model"] for entry in entries] == wanted
    assert not list((tmp_path / "team").rglob("model.safetensors")), "adapters alone; the base by reference"
    loaded = Team.from_pretrained(tmp_path / "team")
    for name, model in team.models.items():
        assert torch.equal(loaded.models[name](IDS).logits, model(IDS).logits)
    assert torch.equal(loaded.router(IDS).route_logits, team.router(IDS).route_logits)
    assert loaded.eos_ids == team.eos_ids


def test_an_adapter_scores_as_its_merged_model_does(world: Path) -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    found = score_batch(load_model(world / "math"), IDS, mask)
    wanted = score_batch(tiny_adapters.merged(world / "math"), IDS, mask)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(found[1], wanted[1])


def test_models_are_checked_from_configs_and_tokenizers_of_base_and_adapter(world: Path) -> None:
    references = {name: ModelReference(model=str(world / name)) for name in NAMES}
    basis = check_models_fit(ModelReference(model=str(world / "base")), references)
    assert basis.context_length == tiny.CONTEXT
    assert load_config(references["math"]).vocab_size == tiny.VOCABULARY


def test_an_adapter_over_another_vocabulary_is_found_without_weights(world: Path, tmp_path: Path) -> None:
    base = tiny_adapters.save_base(tmp_path / "base", vocab_size=300)
    other = ModelReference(model=str(tiny_adapters.save_adapter(tmp_path / "other", base)))
    (base / "model.safetensors").unlink()
    with pytest.raises(VocabularyError, match="expert 'other' has a vocabulary of 300"):
        check_models_fit(ModelReference(model=str(world / "base")), {"other": other})
    (base / "config.json").unlink()
    with pytest.raises(CheckpointError, match="is an adapter whose base cannot be used"):
        load_config(other)


def test_the_fingerprint_knows_adapter_and_base(tmp_path: Path) -> None:
    base = tiny_adapters.save_base(tmp_path / "base")
    reference = ModelReference(model=str(tiny_adapters.save_adapter(tmp_path / "math", base)))
    seen = [model_fingerprint(reference, None)]
    assert model_fingerprint(reference, None) == seen[0]
    tiny_adapters.save_adapter(tmp_path / "math", base, seed=1)
    seen.append(model_fingerprint(reference, None))
    tiny.language_model(seed=5).save_pretrained(base)
    seen.append(model_fingerprint(reference, None))
    config = tmp_path / "math" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    seen.append(model_fingerprint(reference, None))
    assert len({each["content"] for each in seen}) == 4
    assert len({(each["model"], each["dtype"]) for each in seen}) == 1
