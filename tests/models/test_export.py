"""A team as one folder for vLLM: what stands in it, what shares the disk, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import tiny
import tiny_adapters
import tiny_exported
from fusionroute import Team
from fusionroute.cli import app
from fusionroute.errors import CheckpointError, FusionRouteError, OutputExistsError, VocabularyError
from fusionroute.models.export import export_team
from fusionroute.models.export_format import ExportedTeam, check_whole, words

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


@pytest.mark.parametrize(
    ("harm", "kind", "message"),
    [
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
    result = CliRunner().invoke(app, ["export", str(saved), str(out), "--no-complement"])
    assert result.exit_code == 0, result.output
    assert config(out)["complement"] is False
    assert "✓ linked router, gpt4, 7, v2.5" in result.stdout
    assert "note: the team has no prompt format" in result.stdout
    assert result.stdout.endswith(f"{out} is ready: vllm serve {out}\n")
    again = CliRunner().invoke(app, ["export", str(saved), str(out)])
    assert again.exit_code == 2
    assert "already holds" in again.stderr
    assert len(again.stderr.splitlines()) == 1
    assert CliRunner().invoke(app, ["export", str(saved), str(out), "--overwrite", "--copy"]).exit_code == 0
    assert config(out)["complement"] is True
