"""Experts with tokenizers of their own in a comparison: UniTE, GaC and SAFE beside the models alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import tiny_ensemble
from fusionroute.errors import CheckpointError, OutputExistsError, SettingsError, VocabularyError
from fusionroute.evaluation.compare import cells
from fusionroute.evaluation.compare.lineup import Shared
from fusionroute.evaluation.compare.lineup.across import EveryTokenEntry, SafeEntry
from fusionroute.evaluation.compare.run import compare
from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.methods.averaging import AveragingAcross
from fusionroute.methods.safe import Safe
from fusionroute.terminal.progress import RichProgress

QUESTIONS = [{"question": f"Say {word}.", "answer": word} for word in ("hello", "🙂", "and </s>")]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_ensemble.save(tmp_path_factory.mktemp("models"), max_position_embeddings=256)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One task that asks, and one that begins the answer itself."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    config = {
        "task": "asks", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test", "doc_to_text": "{{question}}", "output_type": "generate_until",
        "doc_to_target": "{{answer}}", "generation_kwargs": {"until": [], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / "asks.yaml").write_text(yaml.safe_dump(config))
    (folder / "begins.yaml").write_text(yaml.safe_dump(config | {"task": "begins", "gen_prefix": "the worlds"}))
    return folder


def parsed(experts: dict[str, Any], tasks: Path | None = None, /, **changes: Any) -> CompareSettings:
    values = {
        "experts": experts,
        "prompt": "chat_template",
        "methods": {"bytes": {"method": "single", "expert": "bytes"}},
        "tasks": ["asks"],
        "include": [str(tasks)] if tasks else [],
        "device": "cpu",
    }
    return CompareSettings.parse(values | changes)


def shared(settings: CompareSettings) -> Shared:
    return Shared(settings.experts, settings.base, settings.scorer, settings.prompt, settings.device, settings.dtype)


def measured(settings: CompareSettings, output: Path) -> dict[str, Any]:
    with RichProgress(Console(quiet=True)) as progress:
        return compare(settings, output, progress=progress)


def cell(output: Path, method: str, task: str = "asks") -> dict[str, Any]:
    return dict(json.loads((output / "cells" / method / task / "any-seed.json").read_text()))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"method": "safe"},
            "methods.m: drafter is missing; name the expert that does best alone, one of bytes, pieces",
        ),
        ({"method": "safe", "drafter": "bites"}, "drafter: .*did you mean 'bytes'"),
        ({"method": "gac", "drafter": "bytes", "experts": ["bytes", "peices"]}, "experts: .*did you mean 'pieces'"),
        ({"method": "unite", "drafter": "bytes", "experts": ["bytes"]}, "unite combines experts; name at least two"),
        ({"method": "unite", "drafter": "bytes", "experts": []}, "unite combines experts; name at least two"),
        ({"method": "unite", "drafter": "bytes", "experts": ["bytes", "bytes", "other"]}, "'bytes' stands 2 times"),
        ({"method": "unite", "drafter": "other", "experts": ["bytes", "pieces"]}, "drafter: unknown option 'other'"),
        ({"method": "unite", "drafter": "bytes", "gate": 0.5}, "gate is of host gac"),
        ({"method": "gac", "drafter": "bytes", "draft_length": 3}, "unknown option 'draft_length'"),
        ({"method": "safe", "drafter": "bytes", "draft_length": 0}, "draft_length: .*got 0"),
        ({"method": "safe", "drafter": "bytes", "host": "gak"}, "did you mean 'gac'"),
        ({"method": "safe", "drafter": "bytes", "sharpening": "none", "threshold": 1}, "threshold: .*less than 1"),
        ({"method": "safe", "drafter": "bytes", "weights": {"bytes": 1}}, "weights: 'pieces' has none"),
        ({"method": "safe", "ensemble": "file.yaml", "drafter": "bytes"}, "leave out drafter, or the file"),
        ({"method": "unit", "drafter": "bytes"}, "did you mean 'unite'"),
    ],
)
def test_bad_entries_are_told_what_is_allowed(experts: dict[str, str], entry: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        parsed(experts, methods={"m": entry})
    assert "\n" not in str(caught.value)


def test_an_entry_becomes_its_method(experts: dict[str, str]) -> None:
    entries = {
        "safe": {"method": "safe", "drafter": "pieces", "host": "gac", "draft_length": 3, "gate": None},
        "unite": {
            "method": "unite",
            "drafter": "other",
            "experts": ["bytes", "other"],
            "weights": {"bytes": 1, "other": 3},
        },
        "gac": {"method": "gac", "drafter": "bytes", "sharpening": "geometric", "threshold": 0.2},
    }
    settings = parsed(experts, methods=entries)
    own = shared(settings)
    built = {name: entry.build(own, 0) for name, entry in settings.methods.items()}
    methods: dict[str, Any] = {name: contestant.method for name, contestant in built.items()}
    assert {name: type(method) for name, method in methods.items()} == {
        "safe": Safe, "unite": AveragingAcross, "gac": AveragingAcross,
    }  # fmt: skip
    assert methods["safe"].drafter.name == "pieces"
    assert methods["safe"].host.gate is None
    assert methods["unite"].weights == (0.75, 0.25)
    assert [member.name for member in methods["unite"].members] == ["other", "bytes"]
    assert (methods["gac"].sharpening, methods["gac"].threshold, methods["gac"].host.gate) == ("geometric", 0.2, 0.5)
    assert methods["safe"].sharpening == "prefix"
    assert methods["unite"].sharpening == "none"
    for contestant in built.values():
        assert contestant.tokenizer is contestant.prompt.tokenizer
    assert settings.methods["unite"].models(own).keys() == {"expert other", "expert bytes"}
    # tokenizers are read once for all entries
    assert methods["safe"].members[0].pieces is methods["gac"].members[1].pieces


def test_all_of_them_answer_and_say_who_was_asked(experts: dict[str, str], tasks: Path, tmp_path: Path) -> None:
    entries: dict[str, Any] = {
        "alone": {"method": "single", "expert": "bytes"},
        "unite": {"method": "unite", "drafter": "bytes"},
        "gac": {"method": "gac", "drafter": "bytes"},
        "safe": {"method": "safe", "drafter": "bytes"},
        "only-bytes": {"method": "safe", "drafter": "bytes", "weights": {"bytes": 1, "pieces": 0, "other": 0}},
    }
    record = measured(parsed(experts, tasks, methods=entries, tasks=["asks", "begins"]), tmp_path)
    assert record["failed"] == []
    for task in ("asks", "begins"):
        for name in ("unite", "gac", "safe"):
            for each in cell(tmp_path, name, task)["examples"]:
                assert set(each["tokens"]["expert"]) <= set(experts)
                assert each["context"].endswith("<user>assistant:" + ("the worlds" if task == "begins" else ""))
            assert set(cell(tmp_path, name, task)["cost"]["tokens_read"]) == set(experts)
        answers = [
            [each["answer"] for each in cell(tmp_path, name, task)["examples"]] for name in ("alone", "only-bytes")
        ]
        assert answers[0] == answers[1]


def test_the_beginning_of_an_answer_reaches_every_model(experts: dict[str, str], tasks: Path) -> None:
    """What the verifiers read is their own prompt and the very text from which the drafter goes on."""
    from fusionroute.evaluation.harness.method_lm import MethodLM

    settings = parsed(experts, tasks, methods={"unite": {"method": "unite", "drafter": "bytes"}})
    contestant = settings.methods["unite"].build(shared(settings), 0)
    method: Any = contestant.method
    lm = MethodLM(method, contestant.tokenizer, prompt=contestant.prompt)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the worlds"}]
    context = lm.apply_chat_template(messages, add_generation_prompt=False)
    assert context == "<user>user:hello<user>assistant:the worlds"
    (sequence,) = lm._sequences([(context, lm._decoding({"max_gen_toks": 4}))])
    for reader in method.readers:
        ids = reader.prompt_ids(sequence)
        asked = reader.member.prompt.encode(messages[:1])
        assert ids[: len(asked)] == asked
        assert reader.pieces.text(ids[len(asked) :]) == b"the worlds"


def test_a_file_says_everything(experts: dict[str, str], tasks: Path, tmp_path: Path) -> None:
    path = tiny_ensemble.write_file(tmp_path, experts, host="gac", draft_length=3, drafter="pieces")
    inline = {"method": "safe", "drafter": "pieces", "host": "gac", "draft_length": 3}
    settings = parsed(experts, tasks, methods={"file": {"method": "safe", "ensemble": str(path)}, "inline": inline})
    assert measured(settings, tmp_path / "out")["failed"] == []
    found = [[each["answer"] for each in cell(tmp_path / "out", name)["examples"]] for name in ("file", "inline")]
    assert found[0] == found[1]


def test_a_file_that_was_edited_makes_another_cell(experts: dict[str, str], tmp_path: Path) -> None:
    def cell_now(**options: Any) -> tuple[cells.Cell, dict[str, Any]]:
        path = tiny_ensemble.write_file(tmp_path, experts, **options)
        settings = parsed(experts, methods={"m": {"method": "safe", "ensemble": str(path)}})
        (made,) = cells.cells(settings)
        return made, cells.identity(made, settings, settings.shared(None), "questions")

    made, identity = cell_now(draft_length=5)
    cells.write(made, tmp_path, {"identity": identity})
    again, identity = cell_now(draft_length=5)
    assert cells.kept(again, tmp_path, identity)
    edited, identity = cell_now(draft_length=3)
    with pytest.raises(OutputExistsError, match=r"method\.ensemble\.draft_length was 5, is now 3"):
        cells.kept(edited, tmp_path, identity)


def test_a_file_is_read_once_so_what_was_checked_is_what_is_built(experts: dict[str, str], tmp_path: Path) -> None:
    path = tiny_ensemble.write_file(tmp_path, experts, host="gac", gate=0.25)
    settings = parsed(experts, methods={"m": {"method": "safe", "ensemble": str(path)}}, tasks=["asks", "begins"])
    first, second = cells.cells(settings)
    assert first.entry is second.entry
    first.entry.check(settings.shared(None))
    path.write_text("of something else by now")
    method: Any = second.entry.build(settings.shared(None), 0).method
    assert method.host.gate == 0.25


def test_a_file_may_have_models_for_every_seed_on_devices_of_their_own(experts: dict[str, str], tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / str(seed)).symlink_to(Path(experts["bytes"]).parent)
    seeded = {name: str(tmp_path / "{seed}" / name) for name in experts}
    path = tiny_ensemble.write_file(tmp_path, {**seeded, "other": {"model": seeded["other"], "device": "meta"}})
    settings = parsed(experts, methods={"m": {"method": "safe", "ensemble": str(path)}}, seeds=[0, 1])
    found: list[Any] = list(cells.cells(settings))
    assert [each.seed for each in found] == [0, 1]
    for each in found:
        own = settings.shared(each.seed)
        each.entry.check(own)
        assert each.entry._file.models["bytes"].model == str(tmp_path / str(each.seed) / "bytes")
        devices = [each.entry._reference(name, own).device for name in experts]
        assert devices == [None, None, "meta"]


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("gac", {}, "has method safe, so it is not of the method gac"),
        ("unite", {"method": "averaging", "host": "gac"}, "has host gac, so it is not of the method unite"),
        ("safe", {"prompt": "alpaca"}, "has prompt 'alpaca' but the comparison uses 'chat_template'"),
        ("safe", {"dtype": "bfloat16"}, "has dtype 'bfloat16' for model 'bytes' but the comparison uses None"),
        ("safe", {"device": "cuda:7"}, "has device 'cuda:7' but the comparison uses 'cpu'"),
        ("safe", {"drafter": "left out"}, "drafter is missing"),
        ("safe", {"models": {"bytes": "bytes", "third": "bytes"}}, "has the model 'third', which is none of the comp"),
        ("safe", {"models": {"bytes": "bytes", "pieces": "other"}}, "model 'pieces' of ensemble .* is another than"),
    ],
)
def test_a_file_that_would_not_be_fair(
    experts: dict[str, str], tasks: Path, tmp_path: Path, method: str, changes: dict[str, Any], message: str
) -> None:
    if "models" in changes:
        changes = {"models": {name: experts[place] for name, place in changes["models"].items()}}
    path = tiny_ensemble.write_file(tmp_path, experts, **{"drafter": "bytes", **changes})
    with pytest.raises(SettingsError, match=message):
        measured(parsed(experts, tasks, methods={"m": {"method": method, "ensemble": str(path)}}), tmp_path / "out")
    assert not (tmp_path / "out" / "cells").exists()


def test_a_missing_file_and_a_tokenizer_that_cannot_be_aligned_are_told_before_anything_is_measured(
    experts: dict[str, str], tasks: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="no settings file"):
        measured(parsed(experts, tasks, methods={"m": {"method": "safe", "ensemble": "none.yaml"}}), tmp_path / "out")
    folder = Path(shutil.copytree(experts["other"], tmp_path / "other"))
    text = (folder / "tokenizer.json").read_text()
    for name in ("tokenizer.json", "config.json"):
        (folder / name).unlink()
    entry = {"method": "safe", "drafter": "bytes"}
    with pytest.raises(CheckpointError):
        measured(parsed(experts | {"other": str(folder)}, tasks, methods={"m": entry}), tmp_path / "out")
    shutil.copy(Path(experts["other"]) / "config.json", folder)
    values = json.loads(text)
    values["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(VocabularyError, match="'other'"):
        measured(parsed(experts | {"other": str(folder)}, tasks, methods={"m": entry}), tmp_path / "out")
    assert not (tmp_path / "out" / "cells").exists()


def test_another_drafter_makes_another_cell(experts: dict[str, str], tasks: Path, tmp_path: Path) -> None:
    def entry(drafter: str) -> dict[str, Any]:
        return {"m": {"method": "unite", "experts": ["bytes", "pieces"], "drafter": drafter}}

    measured(parsed(experts, tasks, methods=entry("bytes")), tmp_path)
    with pytest.raises(OutputExistsError, match=r"method.drafter was 'bytes', is now 'pieces'"):
        measured(parsed(experts, tasks, methods=entry("pieces")), tmp_path)


def test_the_papers_rows_are_there() -> None:
    settings = CompareSettings.from_yaml("configs/paper/evaluate/safe.yaml")
    rows = list(settings.methods)
    assert len(rows) == 3 + 4 * 4
    for name, entry in settings.methods.items():
        members = {"I": "internlm", "Q": "qwen", "X": "exaone"}
        if isinstance(entry, (SafeEntry, EveryTokenEntry)):
            letters, _, method = name.partition(" ")
            assert list(entry.experts or ()) == [members[letter] for letter in letters.split("+")]
            assert entry.drafter == members[letters[0]]
            host = entry.host if isinstance(entry, SafeEntry) else entry.method
            assert method.lower().removesuffix("+safe") == host
            assert method.endswith("SAFE") == isinstance(entry, SafeEntry)
    assert {name for name, each in settings.experts.items() if each.trust_remote_code} == {"internlm", "exaone"}
