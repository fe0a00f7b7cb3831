import json
from pathlib import Path

import pytest
import torch

import tiny
import tiny_adapters
from fusionroute import Team
from fusionroute.errors import CheckpointError, OutputExistsError, SettingsError
from fusionroute.models.card import model_card
from fusionroute.models.loading import load_model
from fusionroute.models.team import TeamFile


@pytest.fixture(scope="module")
def team() -> Team:
    return tiny.team()


def saved(team: Team, tmp_path: Path) -> Path:
    team.save_pretrained(tmp_path / "team", save_experts=True)
    return tmp_path / "team"


def test_what_a_team_knows_of_its_models(team: Team) -> None:
    assert team.expert_names == ("math", "code", "chat")
    assert list(team.models) == ["router", "math", "code", "chat"]
    assert team.context_length == tiny.CONTEXT
    assert team.eos_ids == {tiny.EOS}


def test_the_smallest_context_counts() -> None:
    experts = {"math": tiny.language_model(), "code": tiny.language_model(max_position_embeddings=40)}
    assert Team(router=tiny.router(num_experts=2), experts=experts, tokenizer=tiny.tokenizer()).context_length == 40


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "at least one expert"), (("router",), "'router' is the router's name"), (("a b",), "got 'a b'")],
)
def test_names_must_be_usable(names: tuple[str, ...], message: str) -> None:
    experts = {name: tiny.language_model() for name in names}
    with pytest.raises(SettingsError, match=message):
        Team(router=tiny.router(num_experts=max(1, len(names))), experts=experts, tokenizer=tiny.tokenizer())


def test_the_router_must_be_made_for_as_many_experts(team: Team) -> None:
    with pytest.raises(SettingsError, match=r"made for 2 experts but 3 came \(math, code, chat\)"):
        Team(router=tiny.router(num_experts=2), experts=team.experts, tokenizer=team.tokenizer)
    with pytest.raises(SettingsError, match="must be a Router"):
        Team(router=team.router.lm, experts=team.experts, tokenizer=team.tokenizer)
    with pytest.raises(SettingsError, match="must map names to models; got list"):
        Team(router=team.router, experts=list(team.experts.values()), tokenizer=team.tokenizer)


def test_the_same_name_twice_in_a_team_file_is_refused() -> None:
    entry = {"name": "math", "model": "a/b"}
    with pytest.raises(SettingsError, match="'math' stands twice"):
        TeamFile.parse({"experts": [entry, entry]})


def test_saving_never_overwrites_unasked(team: Team, tmp_path: Path) -> None:
    folder = saved(team, tmp_path)
    with pytest.raises(OutputExistsError, match=r"already holds README\.md, experts, router and 1 more"):
        team.save_pretrained(folder, save_experts=True)
    team.save_pretrained(folder, save_experts=True, overwrite=True)
    assert Team.from_pretrained(folder).expert_names == team.expert_names
    assert [item.name for item in tmp_path.iterdir()] == ["team"], "no temporary folder is left"


def test_experts_built_in_code_must_be_saved_too(team: Team, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"expert 'math' was built in code .*save_experts=True"):
        team.save_pretrained(tmp_path / "team")
    assert not list(tmp_path.iterdir())


def test_a_moved_team_still_finds_the_experts_inside_it(team: Team, tmp_path: Path) -> None:
    saved(team, tmp_path).rename(tmp_path / "elsewhere")
    assert Team.from_pretrained(tmp_path / "elsewhere").expert_names == team.expert_names


def test_missing_and_half_written_teams_are_refused(team: Team, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no team folder at"):
        Team.from_pretrained(tmp_path / "nowhere")
    folder = saved(team, tmp_path)
    text = (folder / "team.json").read_text()
    (folder / "team.json").write_text(text[:40])
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Team.from_pretrained(folder)
    (folder / "team.json").write_text(json.dumps(json.loads(text) | {"promt": "alpaca"}))
    with pytest.raises(SettingsError, match="did you mean 'prompt'"):
        Team.from_pretrained(folder)
    (folder / "team.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no team\.json"):
        Team.from_pretrained(folder)


def test_devices_are_checked_by_name(team: Team, tmp_path: Path) -> None:
    folder = saved(team, tmp_path)
    assert Team.from_pretrained(folder, devices={"math": "cpu", "router": "cpu"}).expert_names == team.expert_names
    with pytest.raises(SettingsError, match="'maths'"):
        Team.from_pretrained(folder, devices={"maths": "cpu"})


def test_pushing_refuses_experts_that_others_cannot_reach(team: Team, tmp_path: Path) -> None:
    loaded = Team.from_pretrained(saved(team, tmp_path))
    with pytest.raises(SettingsError, match="expert 'math' is a local folder"):
        loaded.push_to_hub("someone/team")


def test_pushing_uploads_what_saving_writes(team: Team, monkeypatch) -> None:
    import huggingface_hub

    sent = {}
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **options: sent.update(options))

    def upload(self, *, repo_id: str, folder_path: Path) -> str:
        sent["files"] = sorted(str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*.json"))
        return "address"

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert team.push_to_hub("someone/team", private=True, save_experts=True) == "address"
    assert sent["private"] is True
    assert {"team.json", "router/config.json", "experts/code/config.json"} <= set(sent["files"])


def test_the_card_lists_the_experts_in_order() -> None:
    file = TeamFile.parse(
        {"experts": [{"name": "zeta", "model": "a/z"}, {"name": "alpha", "model": "a/a", "revision": "v2"}]}
    )
    card = model_card("mine", file.experts, "alpaca")
    assert card.index("| zeta | a/z | default |") < card.index("| alpha | a/a | v2 |")
    assert "Prompt format: alpaca" in card


def test_an_adapter_that_peft_loaded_itself_is_not_saved_as_its_base(tmp_path: Path) -> None:
    """Peft forgets where it found an adapter, and its model answers with the base's name."""
    base = tiny_adapters.save_base(tmp_path / "base")
    experts = {"math": tiny_adapters.adapted(base)}
    team = Team(router=tiny.router(num_experts=1), experts=experts, tokenizer=tiny.tokenizer())
    with pytest.raises(SettingsError, match="expert 'math' was built in code"):
        team.save_pretrained(tmp_path / "team")
    team.save_pretrained(tmp_path / "team", save_experts=True)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(Team.from_pretrained(tmp_path / "team").experts["math"](ids).logits, experts["math"](ids).logits)


def test_pushing_refuses_adapters_over_a_base_that_others_cannot_reach(tmp_path: Path) -> None:
    base = tiny_adapters.save_base(tmp_path / "base")
    experts = {"math": load_model(tiny_adapters.save_adapter(tmp_path / "math", base))}
    team = Team(router=tiny.router(num_experts=1), experts=experts, tokenizer=tiny.tokenizer())
    with pytest.raises(SettingsError, match="'math' is an adapter over the local folder"):
        team.push_to_hub("someone/team", save_experts=True)
