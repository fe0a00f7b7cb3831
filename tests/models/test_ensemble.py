"""An ensemble file: what it may say, what is told before weights are read, and what loading makes of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny_ensemble
from fusionroute.errors import CheckpointError, SettingsError, VocabularyError
from fusionroute.models.ensemble import (
    EnsembleOptions,
    EnsembleSettings,
    in_order,
    is_ensemble_file,
    load_members,
    load_voices,
)
from fusionroute.models.loading import ModelReference, load_model, load_tokenizer

FILE: dict[str, Any] = {"models": {"one": "owner/one", "two": "owner/two"}, "drafter": "one"}


@pytest.fixture(scope="module")
def models_by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_ensemble.save(tmp_path_factory.mktemp("models"))


def without_weights(folder: str, target: Path) -> Path:
    """All of a model but its weights: whatever still works needs none."""
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors")))


def references(folders: dict[str, str]) -> dict[str, ModelReference]:
    return {name: ModelReference(model=folder, device="cpu") for name, folder in folders.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "save"}, r"method: unknown option 'save'; did you mean 'safe'\?"),
        (
            {"sharpening": False},
            "sharpening: YAML reads off, no and false as a truth value, .* none, prefix, geometric",
        ),
        ({"method": True}, "method: YAML reads on, yes and true as a truth value, which is none of safe, averaging"),
        ({"weights": {"one": True, "two": 1}}, r"weights.one: a number is needed, not a truth value \(got True\)"),
        ({"draft_length": True}, r"draft_length: a number is needed, not a truth value \(got True\)"),
        ({"threshold": False}, "threshold: a number is needed"),
        ({"host": "gac", "gate": True}, "gate: a number is needed"),
        ({"models": {"one": None, "two": "owner/two"}}, "models: 'one' is None; give a folder, a hub id, or"),
        ({"host": "unit"}, r"host: .*did you mean 'unite'\?"),
        ({"sharpening": "prefx"}, r"sharpening: .*did you mean 'prefix'\?"),
        ({"draft_lenght": 3}, "did you mean 'draft_length'"),
        ({"draft_length": 0}, r"draft_length: .*greater than or equal to 1 \(got 0\)"),
        ({"threshold": 0}, "threshold: .*greater than 0"),
        ({"threshold": 1}, "threshold: .*less than 1"),
        ({"threshold": float("nan")}, "threshold: .*finite"),
        ({"host": "gac", "gate": 1.5}, "gate: .*less than or equal to 1"),
        ({"gate": 0.5}, "gate is of host gac; unite has none: leave it out, or choose host: gac"),
        ({"method": "averaging", "draft_length": 5}, "draft_length is of method safe; averaging asks every model"),
        ({"weights": {"one": 0, "two": 0}}, "weights: they are all 0"),
        ({"weights": {"one": 2, "two": -1}}, "weights: 'two' has -1.0; weights are 0 or more"),
        ({"weights": {"one": 1}}, "weights: 'two' has none; give every model one"),
        ({"weights": {"one": 1, "tow": 1}}, "weights: unknown option 'tow'; did you mean 'two'"),
        ({"drafter": "onne"}, "drafter: unknown option 'onne'; did you mean 'one'"),
        ({"models": {"one": "owner/one"}}, "models: an ensemble has at least two models; got 1"),
        ({"models": ["owner/one", "owner/two"]}, "models: models map names to models"),
        ({"models": {"a b": "owner/one", "two": "owner/two"}}, "got 'a b'"),
        ({"models": {"one": {"modl": "owner/one"}, "two": "owner/two"}}, "did you mean 'model'"),
        ({"prompt": "alpca"}, "prompt: .*did you mean 'alpaca'"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        EnsembleSettings.parse(FILE | changes, source="file.yaml")
    assert str(caught.value).startswith("file.yaml: ")
    assert "\n" not in str(caught.value)


def test_the_defaults_are_the_papers() -> None:
    safe, every = EnsembleSettings.parse(FILE), EnsembleSettings.parse(FILE | {"method": "averaging", "host": "gac"})
    common = {"drafter": "one", "weights": None, "threshold": 0.1}
    assert safe.keywords() == common | {"host": "unite", "sharpening": "prefix", "draft_length": 5}
    assert every.keywords() == common | {"host": "gac", "sharpening": "none", "gate": 0.5}


def test_a_gate_may_be_taken_away() -> None:
    assert EnsembleSettings.parse(FILE | {"host": "gac", "gate": None}).keywords()["gate"] is None
    assert "gate" not in EnsembleSettings.parse(FILE | {"gate": None}).keywords()  # that there is none is no news


def test_a_missing_drafter_is_told_only_when_one_is_needed() -> None:
    settings = EnsembleSettings.parse({"models": FILE["models"]})
    with pytest.raises(SettingsError, match="one of one, two, or let fusionroute calibrate choose it"):
        settings.require_drafter(settings.models)
    assert in_order(["a", "b", "c"], "b") == ["b", "a", "c"]


def test_changes_come_before_the_file(tmp_path: Path) -> None:
    path = tiny_ensemble.write_file(tmp_path, FILE["models"], weights={"one": 1, "two": 1}, host="gac", gate=0.7)
    settings = EnsembleSettings.read(path, {"weights.two": 3, "draft_length": 2, "models.one.device": "cuda:7"})
    assert settings.weights == {"one": 1, "two": 3}
    assert settings.models["one"] == ModelReference(model="owner/one", device="cuda:7")
    with pytest.raises(SettingsError, match="'two' has none; give every model one"):
        EnsembleSettings.read(path, {"weights": {"one": 3}})  # all of them are replaced
    with pytest.raises(SettingsError, match=r"host\.deep: 'host' holds no options of its own; it is 'gac'"):
        EnsembleSettings.read(path, {"host.deep": 1})
    assert (settings.draft_length, settings.gate, settings.host) == (2, 0.7, "gac")
    with pytest.raises(SettingsError, match=r"ensemble.yaml: .*did you mean 'draft_length'"):
        EnsembleSettings.read(path, {"draft_lengt": 2})


def test_a_team_file_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "team.yaml"
    path.write_text("experts: {math: a/b}\nrouter: {init: a/b}\n")
    with pytest.raises(SettingsError, match="names experts, so it is a team file or a compare file"):
        EnsembleSettings.read(path)
    with pytest.raises(SettingsError, match="no settings file"):
        EnsembleSettings.read(tmp_path / "none.yaml")
    assert is_ensemble_file("a/b.yaml")
    assert is_ensemble_file(Path("E.YML"))
    assert not is_ensemble_file("runs/team")


def test_an_option_that_is_null_has_its_default() -> None:
    nulls = dict.fromkeys(("draft_length", "sharpening", "threshold", "weights"))
    assert EnsembleSettings.parse(FILE | nulls).keywords() == EnsembleSettings.parse(FILE).keywords()


def test_options_alone_are_as_strict() -> None:
    with pytest.raises(SettingsError, match="did you mean 'drafter'"):
        EnsembleOptions.parse({"draftr": "one"})


def test_members_are_loaded_as_they_stand(models_by_name: dict[str, str]) -> None:
    models = references(models_by_name)
    members = load_members(models, load_voices(models, "chat_template"))
    assert [member.name for member in members] == list(models)
    for member in members:
        tokenizer = load_tokenizer(models[member.name])
        assert member.pieces.end_id == tokenizer.eos_token_id
        assert member.pieces.vocabulary_size == member.model.config.vocab_size
        assert member.prompt.encode("hi") == tokenizer.apply_chat_template(
            [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
        )
    assert len({member.prompt.tokenizer.chat_template for member in members}) == 3


def test_one_checkpoint_under_two_names_is_in_memory_once(models_by_name: dict[str, str]) -> None:
    models = {name: ModelReference(model=models_by_name["bytes"], device="cpu") for name in ("one", "two")}
    first, second = load_members(models, load_voices(models, None))
    weights = [each.model.get_input_embeddings().weight for each in (first, second)]
    assert weights[0].data_ptr() == weights[1].data_ptr()


# --- before weights are read ------------------------------------------------------------------------------------------


def test_a_format_that_a_tokenizer_lacks(models_by_name: dict[str, str], tmp_path: Path) -> None:
    folder = without_weights(models_by_name["other"], tmp_path / "other")
    (folder / "chat_template.jinja").unlink()
    models = references(models_by_name | {"other": str(folder)})
    with pytest.raises(SettingsError, match="model 'other': prompt is chat_template but the tokenizer has none"):
        load_voices(models, "chat_template")
    assert load_voices(models, None)["other"].prompt.name is None


def test_a_model_without_an_end(models_by_name: dict[str, str], tmp_path: Path) -> None:
    folder = without_weights(models_by_name["bytes"], tmp_path / "endless")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            values = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({k: v for k, v in values.items() if not k.startswith("eos_token")}))
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<eos>", "<odd>"))
    with pytest.raises(VocabularyError, match="'endless' has no end-of-sequence token"):
        load_voices({"endless": ModelReference(model=str(folder))}, None)


def test_a_tokenizer_that_cannot_be_aligned(models_by_name: dict[str, str], tmp_path: Path) -> None:
    folder = without_weights(models_by_name["bytes"], tmp_path / "words")
    raw = Tokenizer(models.WordPiece({"[UNK]": 0, "hello": 1, "##s": 2, "<eos>": 3}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", unk_token="[UNK]").save_pretrained(folder)
    with pytest.raises(VocabularyError, match="'words'"):
        load_voices({"words": ModelReference(model=str(folder))}, None)


def test_the_ends_of_the_generation_config_count(models_by_name: dict[str, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models_by_name["bytes"], tmp_path / "two-ends"))
    values = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(values | {"eos_token_id": [1, 2]}))
    models = references({"bytes": str(folder)})
    voices = load_voices(models, None)
    assert {1, 2} <= voices["bytes"].pieces.end_ids
    (member,) = load_members(models, voices)
    assert member.pieces is voices["bytes"].pieces  # nothing was read twice
    (folder / "generation_config.json").unlink()
    assert 1 in load_voices(models, None)["bytes"].pieces.end_ids  # as transformers makes one of the config


def test_a_missing_model_is_named(models_by_name: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="/no/such/model"):
        load_voices(references(models_by_name | {"other": "/no/such/model"}), None)


# --- remote code ------------------------------------------------------------------------------------------------------

CONFIG = "from transformers import LlamaConfig\nclass OddConfig(LlamaConfig):\n    model_type = 'odd'\n"
MODEL = (
    "from transformers import LlamaForCausalLM\nfrom .configuration_odd import OddConfig\n"
    "class OddForCausalLM(LlamaForCausalLM):\n    config_class = OddConfig\n"
)


def test_remote_code_is_run_only_if_the_file_says_so(
    models_by_name: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(shutil.copytree(models_by_name["bytes"], tmp_path / "odd"))
    (folder / "configuration_odd.py").write_text(CONFIG)
    (folder / "modeling_odd.py").write_text(MODEL)
    values = json.loads((folder / "config.json").read_text())
    autos = {"AutoConfig": "configuration_odd.OddConfig", "AutoModelForCausalLM": "modeling_odd.OddForCausalLM"}
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "odd", "auto_map": autos}))
    plain = ModelReference(model=str(folder), device="cpu")
    with pytest.raises(CheckpointError):
        load_voices({"odd": plain}, None)
    with pytest.raises(CheckpointError):
        load_model(plain)
    trusted = plain.model_copy(update={"trust_remote_code": True})
    (member,) = load_members({"odd": trusted}, load_voices({"odd": trusted}, None))
    assert type(member.model).__name__ == "OddForCausalLM"
    expected = load_model(models_by_name["bytes"], device="cpu")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(member.model(ids).logits, expected(ids).logits)
