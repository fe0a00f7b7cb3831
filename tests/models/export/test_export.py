"""A team as one folder for vLLM: what stands in it, what shares the disk, what is refused."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tiny
import tiny_adapters
import tiny_exported
from fusionroute import Team
from fusionroute.cli import app
from fusionroute.errors import CheckpointError, FusionRouteError, OutputExistsError, SettingsError, VocabularyError
from fusionroute.models.export.export import export_team
from fusionroute.models.export.format import ExportedTeam, check_whole, words

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A team of three families; the names of its experts are not in the order of the alphabet."""
    folder = tmp_path_factory.mktemp("team") / "team"
    tiny_exported.team("mixed").save_pretrained(folder, save_experts=True)
    return folder


def config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def exported_team(folder: Path) -> ExportedTeam:
    return ExportedTeam.parse(config(folder)["team"])


def test_every_weight_is_there_in_the_order_of_the_route_head(saved: Path, tmp_path: Path) -> None:
    done = export_team(saved, tmp_path / "out")
    assert done.linked == ["router", *tiny_exported.NAMES]
    assert not done.copied
    team = exported_team(tmp_path / "out")
    assert [expert.name for expert in team.experts] == list(tiny_exported.NAMES)
    assert [each["model_type"] for each in team.configs] == ["llama", "gemma2", "mistral", "qwen3"]
    for folder, origin in zip(team.folders, ["router", *(f"experts/{n}" for n in tiny_exported.NAMES)], strict=True):
        assert (tmp_path / "out" / folder / WEIGHTS).samefile(saved / origin / WEIGHTS)
        assert [path.name for path in (tmp_path / "out" / folder).iterdir()] == [WEIGHTS], "nothing else is loaded"
    head = load_file(tmp_path / "out" / WEIGHTS)
    assert torch.equal(head["route_head.weight"], load_file(saved / "router" / "route_head.safetensors")["weight"])
    check_whole(tmp_path / "out", team.weight_files)


def test_what_vllm_reads_of_the_whole(saved: Path, tmp_path: Path) -> None:
    export_team(saved, tmp_path / "out", complement=False)
    values = config(tmp_path / "out")
    assert values["architectures"] == ["FusionRouteForCausalLM"]
    assert values["model_type"] == "fusionroute"
    assert values["dtype"] == "float32"
    assert values["complement"] is False
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [tiny.EOS]


def test_an_answer_ends_by_the_end_of_any_model(tmp_path: Path) -> None:
    experts = tiny.experts()
    experts["code"].generation_config.eos_token_id = [tiny.EOS, 7]
    team = Team(router=tiny.router(), experts=experts, tokenizer=tiny.tokenizer())
    folder = tiny_exported.exported(team, tmp_path)
    assert set(config(folder)["eos_token_id"]) == team.eos_ids == {tiny.EOS, 7}
    (tmp_path / "team/experts/code/generation_config.json").unlink()
    export_team(tmp_path / "team", folder, overwrite=True)
    assert set(config(folder)["eos_token_id"]) == Team.from_pretrained(tmp_path / "team").eos_ids == {tiny.EOS}


def test_shards_stay_shards(saved: Path, tmp_path: Path) -> None:
    team = Path(shutil.copytree(saved, tmp_path / "team"))
    expert = team / "experts" / "gpt4"
    (expert / WEIGHTS).unlink()
    tiny_exported.model("gemma2", 0).save_pretrained(expert, max_shard_size="20KB")
    (expert / "consolidated.safetensors").write_bytes(b"the same weights once more, in another form")
    export_team(team, tmp_path / "out")
    index = f"{WEIGHTS}.index.json"
    shards = set(json.loads((expert / index).read_text())["weight_map"].values())
    assert len(shards) > 1
    found = {path.name for path in (tmp_path / "out/experts/gpt4").iterdir()}
    assert found == {index, *shards}
    next(iter(expert.glob("model-00002*"))).unlink()
    with pytest.raises(CheckpointError, match=r"half-written: model-00002.* is missing"):
        export_team(team, tmp_path / "other")


@pytest.mark.parametrize("copy", [False, True])
def test_shards_of_one_name_stay_apart(copy: bool, saved: Path, tmp_path: Path) -> None:
    team = Path(shutil.copytree(saved, tmp_path / "team"))
    tiny_exported.shards_of_one_name(team / "experts" / "7")
    shards = ["experts/7/a/model.safetensors", "experts/7/b/model.safetensors"]
    before = [(team / shard).read_bytes() for shard in shards]
    done = export_team(team, tmp_path / "out", copy=copy)
    assert ("7" in done.linked) is not copy
    assert [(team / shard).read_bytes() for shard in shards] == before
    assert [(tmp_path / "out" / shard).read_bytes() for shard in shards] == before
    ours = exported_team(tmp_path / "out")
    assert set(shards) < ours.weight_files.keys()
    assert ours.weight_folders("experts/7") == ["experts/7/a", "experts/7/b"]
    check_whole(tmp_path / "out", ours.weight_files)


@pytest.mark.parametrize(("code", "is_copied"), [(errno.EXDEV, True), (errno.EPERM, True), (errno.ENOSPC, False)])
def test_what_cannot_be_linked(
    code: int, is_copied: bool, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.link", refuse)
    if is_copied:
        assert export_team(saved, tmp_path / "out").copied == ["router", *tiny_exported.NAMES]
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            export_team(saved, tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_everybody_may_read_what_the_umask_lets_them(saved: Path, tmp_path: Path) -> None:
    export_team(saved, tmp_path / "out")
    (tmp_path / "usual").write_text("x")
    assert (tmp_path / "out" / WEIGHTS).stat().st_mode == (tmp_path / "usual").stat().st_mode


# --- where nothing is written -----------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("team", "is the team"),
        (".", "holds the team"),
        ("team/new", "lies inside the team"),
        ("team/experts/7", "lies inside the team"),
        ("link", "is the team"),
        ("elsewhere/7", "is expert '7'"),
        ("elsewhere", "holds expert '7'"),
        ("elsewhere/7/new", "lies inside expert '7'"),
    ],
)
def test_no_team_is_exported_over_itself(place: str, message: str, saved: Path, tmp_path: Path) -> None:
    team = Path(shutil.copytree(saved, tmp_path / "team"))
    shutil.copytree(saved / "experts/7", tmp_path / "elsewhere/7")
    (tmp_path / "link").symlink_to(team)
    experts = json.loads((team / "team.json").read_text())["experts"]
    moved = [each | {"model": str(tmp_path / "elsewhere/7")} if each["name"] == "7" else each for each in experts]
    edit(team / "team.json", experts=moved)
    before = contents(tmp_path)
    with pytest.raises(OutputExistsError, match=f"{message}.*export into a folder of its own"):
        export_team(team, tmp_path / place, overwrite=True)
    assert contents(tmp_path) == before


def test_nor_over_an_adapter_or_its_base(tmp_path: Path) -> None:
    base = tiny_adapters.save_base(tmp_path / "base")
    place = tiny_adapters.save_adapter(tmp_path / "one", base, 0)
    tiny.router(num_experts=1).save_pretrained(tmp_path / "team" / "router")
    tiny.tokenizer().save_pretrained(tmp_path / "team" / "router")
    (tmp_path / "team" / "team.json").write_text(json.dumps({"experts": [{"name": "one", "model": str(place)}]}))
    before = contents(tmp_path)
    for folder, what in ((base, "the base of expert 'one'"), (place, "expert 'one'")):
        with pytest.raises(OutputExistsError, match=f"is {what}"):
            export_team(tmp_path / "team", folder, overwrite=True)
    assert contents(tmp_path) == before


def test_a_copy_is_independent(saved: Path, tmp_path: Path) -> None:
    done = export_team(saved, tmp_path / "out", copy=True)
    assert done.copied == ["router", *tiny_exported.NAMES]
    for name in tiny_exported.NAMES:
        ours, theirs = (folder / "experts" / name / WEIGHTS for folder in (tmp_path / "out", saved))
        assert not ours.samefile(theirs)
        assert ours.read_bytes() == theirs.read_bytes()


def test_adapters_are_merged(tmp_path: Path) -> None:
    base = tiny_adapters.save_base(tmp_path / "base")
    places = {name: tiny_adapters.save_adapter(tmp_path / name, base, at) for at, name in enumerate(("one", "two"))}
    router = tiny.router(num_experts=2)
    router.save_pretrained(tmp_path / "team" / "router")
    tiny.tokenizer().save_pretrained(tmp_path / "team" / "router")
    entries = [{"name": name, "model": str(place)} for name, place in places.items()]
    (tmp_path / "team" / "team.json").write_text(json.dumps({"experts": entries}))
    done = export_team(tmp_path / "team", tmp_path / "out")
    assert (done.linked, done.merged) == (["router"], ["one", "two"])
    for name, place in places.items():
        assert [path.name for path in (tmp_path / "out/experts" / name).iterdir()] == [WEIGHTS]
        assert (tmp_path / "out/experts" / name / WEIGHTS).stat().st_mode == (tmp_path / "out" / WEIGHTS).stat().st_mode
        found = load_file(tmp_path / "out/experts" / name / WEIGHTS)
        expected = tiny_adapters.merged(place).state_dict()
        assert found.keys() <= expected.keys()
        assert found.keys() | {"lm_head.weight"} == expected.keys()
        for key, weight in found.items():
            torch.testing.assert_close(weight, expected[key], msg=key)


@pytest.mark.parametrize("prompt", [None, "alpaca", "chat_template"])
def test_the_prompt_format_becomes_the_chat_template(prompt: str | None, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer._tokenizer.post_processor = bos_and_end(tokenizer)
    team = Team(router=tiny.router(), experts=tiny.experts(), tokenizer=tokenizer, prompt=prompt)
    team.save_pretrained(tmp_path / "team", save_experts=True)
    done = export_team(tmp_path / "team", tmp_path / "out")
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(tmp_path / "out", config=tiny.language_model().config)
    if prompt is None:
        assert found.chat_template is None
        assert "completions only" in done.notes[0]
        return
    assert not done.notes
    messages = [{"role": "user", "content": 'Say "hi" {{ and }}'}, {"role": "assistant", "content": "hi"}]
    for conversation in (messages[:1], [*messages, messages[0]]):
        text = found.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert found(text, add_special_tokens=False).input_ids == team.prompt_format.encode(conversation)


def bos_and_end(tokenizer: Any) -> Any:
    """Tokens before and after a text, which vLLM leaves to the template of a chat."""
    from tokenizers.processors import TemplateProcessing

    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<pad>")]
    return TemplateProcessing(single="<bos> $A <pad>", special_tokens=ids)


def test_layers_are_named_by_words_without_numbers() -> None:
    named = words(60)
    assert named[:3] == ["router", "expert_a", "expert_b"]
    assert (named[26], named[27], named[60]) == ("expert_z", "expert_aa", "expert_bh")
    assert len(set(named)) == 61
    assert not any(letter.isdigit() for word in named for letter in word)


# --- what is refused --------------------------------------------------------------------------------------------------


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def quantised(team: Path) -> None:
    edit(team / "experts/7/config.json", quantization_config={"quant_method": "fp8"})


def other_vocabulary(team: Path) -> None:
    edit(team / "experts/7/config.json", vocab_size=tiny.VOCABULARY + 8)


def fewer_experts(team: Path) -> None:
    values = json.loads((team / "team.json").read_text())
    edit(team / "team.json", experts=values["experts"][:2])


def other_router(team: Path) -> None:
    edit(team / "router/config.json", hidden_size=64)


def cut(team: Path) -> None:
    path = team / "experts/7" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def no_weights(team: Path) -> None:
    (team / "experts/7" / WEIGHTS).unlink()


def index(team: Path, value: Any) -> None:
    tiny_exported.shards_of_one_name(team / "experts/7")
    (team / "experts/7" / f"{WEIGHTS}.index.json").write_text(json.dumps(value))


def index_is_a_list(team: Path) -> None:
    index(team, ["model.safetensors"])


def index_leads_out(team: Path) -> None:
    index(team, {"weight_map": {"w": "../gpt4/model.safetensors"}})


def index_is_absolute(team: Path) -> None:
    index(team, {"weight_map": {"w": str(team / "experts/gpt4/model.safetensors")}})


def index_names_a_number(team: Path) -> None:
    index(team, {"weight_map": {"w": 3}})


def index_of_more(team: Path) -> None:
    tiny_exported.shards_of_one_name(team / "experts/7")
    path = team / "experts/7/b/model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("harm", "kind", "message"),
    [
        (index_is_a_list, CheckpointError, "index.json is corrupt"),
        (index_leads_out, CheckpointError, "is no file below its folder"),
        (index_is_absolute, CheckpointError, "is no file below its folder"),
        (index_names_a_number, CheckpointError, "is no file below its folder"),
        (index_of_more, CheckpointError, "half-written: b/model.safetensors lacks model.norm.weight, which"),
        (quantised, CheckpointError, "expert '7' is quantised; export a team of unquantised models"),
        (other_vocabulary, VocabularyError, "expert '7' has a vocabulary of 269"),
        (fewer_experts, CheckpointError, "trained for 3 experts but the team names 2"),
        (other_router, CheckpointError, "reads 32 features but the router has 64"),
        (cut, CheckpointError, "is corrupt"),
        (no_weights, CheckpointError, "has no model.safetensors and no model.safetensors.index.json"),
    ],
)
def test_a_team_that_does_not_fit_is_refused(
    harm: Callable[[Path], None], kind: type[FusionRouteError], message: str, saved: Path, tmp_path: Path
) -> None:
    team = Path(shutil.copytree(saved, tmp_path / "team"))
    harm(team)
    with pytest.raises(kind, match=message):
        export_team(team, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["team"], "nothing half-written stays"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": [{"name": "a", "folder": "../b", "config": {}}]}, "lie in experts/a, not in '../b'"),
        ({"experts": [{"name": "../a", "folder": "experts/../a", "config": {}}]}, "an expert's name is letters"),
        ({"weight_files": {}}, "there is nothing of model.safetensors"),
        ({"weight_files": {WEIGHTS: 1, f"router/{WEIGHTS}": 1}}, "there is nothing of experts/a"),
        ({"weight_files": {"experts/a/../../x.safetensors": 1}}, "is neither model.safetensors nor below"),
        ({"weight_files": {"/etc/passwd": 1}}, "is neither model.safetensors nor below"),
        ({"weight_files": {"experts/b/model.safetensors": 1}}, "is neither model.safetensors nor below"),
    ],
)
def test_a_config_of_a_stranger_leads_nowhere_else(changes: dict[str, Any], message: str) -> None:
    values = {
        "router": {},
        "experts": [{"name": "a", "folder": "experts/a", "config": {}}],
        "weight_files": {WEIGHTS: 1, f"router/{WEIGHTS}": 1, f"experts/a/{WEIGHTS}": 1},
    }
    assert ExportedTeam.parse(values).folders == ["router", "experts/a"]
    with pytest.raises(SettingsError, match=message):
        ExportedTeam.parse(values | changes)


def test_nothing_is_overwritten_unasked(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"already holds mine\.txt"):
        export_team(saved, tmp_path)
    export_team(saved, tmp_path, overwrite=True)
    assert not (tmp_path / "mine.txt").exists()


def test_a_half_copied_folder_is_told_by_its_sizes(saved: Path, tmp_path: Path) -> None:
    export_team(saved, tmp_path / "out", copy=True)
    sizes = exported_team(tmp_path / "out").weight_files
    path = tmp_path / "out/experts/7" / WEIGHTS
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(
        CheckpointError, match=rf"experts/7/model.safetensors has 500 of {sizes['experts/7/' + WEIGHTS]}"
    ):
        check_whole(tmp_path / "out", sizes)
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing; copy it again"):
        check_whole(tmp_path / "out", sizes)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(saved), "--output", str(out), "--no-complement"])
    assert result.exit_code == 0, result.output
    assert config(out)["complement"] is False
    assert "✓ linked router, gpt4, 7, v2.5" in result.stdout
    assert "note: the team has no prompt format" in result.stdout
    assert result.stdout.endswith(f"{out} is ready\nnext: vllm serve {out} --dtype float32\n")
    again = CliRunner().invoke(app, ["export", str(saved), "--output", str(out)])
    assert again.exit_code == 2
    assert "already holds" in again.stderr
    assert len(again.stderr.splitlines()) == 1
    onto_itself = CliRunner().invoke(app, ["export", str(saved), "--output", str(saved), "--overwrite"])
    assert onto_itself.exit_code == 2
    assert "is the team" in onto_itself.stderr
    assert len(onto_itself.stderr.splitlines()) == 1
    assert CliRunner().invoke(app, ["export", str(saved), "--output", str(out), "--overwrite", "--copy"]).exit_code == 0
    assert config(out)["complement"] is True


def test_a_team_in_half_precision_is_served_in_its_own(tmp_path: Path) -> None:
    lm, expert = (tiny_exported.model("llama", seed).bfloat16() for seed in (100, 0))
    tiny_exported.together(lm, {"one": expert}).save_pretrained(tmp_path / "team", save_experts=True)
    result = CliRunner().invoke(app, ["export", str(tmp_path / "team"), "--output", str(tmp_path / "out")])
    assert config(tmp_path / "out")["dtype"] == "bfloat16"
    assert result.stdout.endswith(f"vllm serve {tmp_path / 'out'}\n")
    assert "--dtype" not in (tmp_path / "out" / "README.md").read_text()
