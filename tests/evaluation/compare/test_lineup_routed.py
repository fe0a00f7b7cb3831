"""C3PO in a comparison: its entry, what it is held to, and an answer to every question."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import tiny
import tiny_moe
import tiny_rerouting
from fusionroute.errors import DataError, SettingsError
from fusionroute.evaluation.compare.lineup import ENTRIES
from fusionroute.evaluation.compare.lineup.routed import C3POEntry
from fusionroute.evaluation.compare.run import compare
from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.models.loading import load_model
from fusionroute.terminal.progress import RichProgress

KERNEL = {"method": "c3po", "expert": "moe", "surrogate": "kernel"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, what was recorded of the first, and a task of its own."""
    folder = tmp_path_factory.mktemp("routed")
    for name, seed in (("moe", 0), ("other", 1)):
        tiny_moe.mixture("olmoe", seed=seed).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    tiny_rerouting.recorded(load_model(str(folder / "moe"), device="cpu"), folder / "recorded")
    data = folder / "say.jsonl"
    data.write_text("".join(json.dumps({"question": f"say {at}:", "answer": "moon"}) + "\n" for at in range(4)))
    task = {
        "task": "say", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "output_type": "generate_until", "generation_kwargs": {"until": [], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / "say.yaml").write_text(yaml.safe_dump(task))
    return folder


def settings(folder: Path, methods: dict[str, Any], **changes: Any) -> CompareSettings:
    experts = {name: str(folder / name) for name in ("moe", "other")}
    values = {"experts": experts, "methods": methods, "include": [str(folder)], "tasks": ["say"], "device": "cpu"}
    return CompareSettings.parse(values | changes)


def entry(folder: Path, **changes: Any) -> dict[str, Any]:
    return KERNEL | {"references": str(folder / "recorded")} | changes


def build(folder: Path, values: dict[str, Any], **changes: Any) -> Any:
    parsed = settings(folder, {"C3PO": values}, **changes)
    return parsed.methods["C3PO"].build(parsed.shared(None), 0)


def answers(output: Path, method: str) -> list[str]:
    (path,) = (output / "cells" / method / "say").glob("*.json")
    return [each["answer"] for each in json.loads(path.read_text(encoding="utf-8"))["examples"]]


def test_it_is_compared_with_the_model_alone(folder: Path, tmp_path: Path) -> None:
    methods = {
        "alone": {"method": "single", "expert": "moe"},
        "untouched": entry(folder, alpha=1.0),
        "kernel": entry(folder, alpha=0.0),
        "ngd": entry(folder, surrogate="ngd", steps=2),
    }
    with RichProgress(Console(quiet=True)) as progress:
        record = compare(settings(folder, methods), tmp_path / "out", progress=progress)
    assert record["failed"] == []
    alone, untouched, kernel = (answers(tmp_path / "out", each) for each in ("alone", "untouched", "kernel"))
    assert alone == untouched != kernel
    assert len(kernel) == 4
    read = {name: cost["tokens_read_per_token"]["moe"] for name, cost in record["cost"].items()}
    assert read["alone"] < read["untouched"] == pytest.approx(read["kernel"], rel=0.5)
    assert read["kernel"] < read["ngd"]


def test_its_options_are_those_of_c3po(folder: Path) -> None:
    parsed = settings(folder, {"C3PO": entry(folder, k=2, alpha=0.5, duplicate=None)}).methods["C3PO"]
    assert isinstance(parsed, C3POEntry)
    assert ENTRIES["c3po"] is C3POEntry
    contestant = build(folder, entry(folder, k=2, alpha=0.5, duplicate=None))
    chosen = contestant.method.rerouting
    assert (chosen.settings.surrogate, chosen.settings.k, chosen.settings.alpha) == ("kernel", 2, 0.5)
    assert chosen.references.k == 2
    assert chosen.references.duplicate is None
    assert [gate.layer for gate in chosen.gates.gates] == [2, 3], "the layers of the recording"
    with pytest.raises(SettingsError, match="did you mean 'surrogate'"):
        settings(folder, {"C3PO": KERNEL | {"references": "r", "surogate": "ngd"}})
    with pytest.raises(SettingsError, match="alpha means nothing to the surrogate ngd"):
        settings(folder, {"C3PO": entry(folder, surrogate="ngd", alpha=0.5)})
    with pytest.raises(SettingsError, match="did you mean 'moe'"):
        settings(folder, {"C3PO": entry(folder, expert="mo")})


def test_conditions_know_a_recording_by_its_content(folder: Path, tmp_path: Path) -> None:
    parsed = settings(folder, {"C3PO": entry(folder)}).methods["C3PO"]
    moved = tmp_path / "moved"
    moved.symlink_to(folder / "recorded")
    same = settings(folder, {"C3PO": entry(folder, references=str(moved))}).methods["C3PO"]
    assert parsed.conditions() == same.conditions()
    model = load_model(str(folder / "moe"), device="cpu")
    tiny_rerouting.recorded(model, tmp_path / "fewer", count=8)
    fewer = settings(folder, {"C3PO": entry(folder, references=str(tmp_path / "fewer"))}).methods["C3PO"]
    assert parsed.conditions() != fewer.conditions()
    other = settings(folder, {"C3PO": entry(folder, alpha=0.5)}).methods["C3PO"]
    assert parsed.conditions() != other.conditions()
    json.dumps(parsed.conditions())


def test_a_recording_of_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="recorded of something else"):
        build(folder, entry(folder, expert="other"))


def test_a_recording_that_is_not_there_is_refused_before_anything_is_loaded(folder: Path) -> None:
    parsed = settings(folder, {"C3PO": entry(folder, references=str(folder / "nothing"))})
    with pytest.raises(DataError, match="holds no recorded pathways"):
        parsed.methods["C3PO"].check(parsed.shared(None))


def test_another_prompt_format_than_the_recordings_is_refused(folder: Path) -> None:
    parsed = settings(folder, {"C3PO": entry(folder)}, prompt="alpaca")
    with pytest.raises(SettingsError, match="recorded with prompt None but the comparison uses 'alpaca'"):
        parsed.methods["C3PO"].check(parsed.shared(None))
