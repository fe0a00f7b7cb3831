import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny_moe
from fusionroute.errors import (
    CheckpointError,
    DataError,
    FusionRouteError,
    ModelOutputError,
    OutputExistsError,
    SettingsError,
)
from fusionroute.models.gates import Gates
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.asking import ask
from fusionroute.moe.optimise import Descent
from fusionroute.moe.oracle import best_routing
from fusionroute.moe.pathways.pathways import load_pathways
from fusionroute.moe.questions.questions import encode_questions, read_questions
from fusionroute.moe.roma.roma import prepare, train_roma
from fusionroute.moe.roma.router_delta import apply_delta
from fusionroute.moe.roma.settings import NeighbourSettings, RoMASettings
from fusionroute.moe.roma.targets import graph, routing_at
from fusionroute.progress import Silent
from tiny_roma import Interrupt, as_values, rows, save_model, tensors, world
from tiny_training import Recorder, write_rows

SHORT = {"batch_size": 8, "learning_rate": 1e-2, "max_steps": 2, "warmup_ratio": 0}


def asked(path: Path) -> list[Any]:
    return encode_questions(read_questions(path), PromptFormat(load_tokenizer(path.parent / "base")))


def test_from_settings_to_a_checkpoint(tmp_path: Path) -> None:
    settings, progress = world(tmp_path), Recorder()
    made = train_roma(settings, tmp_path / "run", progress=progress)
    assert made == tmp_path / "run" / "model"
    before, after = tensors(tmp_path / "base"), tensors(made)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{at}.mlp.gate.weight" for at in (2, 3)}
    report = json.loads((tmp_path / "run" / "roma.json").read_text())
    assert (report["questions"], report["steps"], report["weight"]) == (24, 3, 1.0)
    assert 0 < report["answered_correctly"] < 24
    assert report["trained_parameters"] == 2 * tiny_moe.EXPERTS * 32
    assert report["last_log"]["loss"] == pytest.approx(
        report["last_log"]["task_loss"] + report["last_log"]["manifold_loss"], rel=1e-4
    )
    pathways = load_pathways(tmp_path / "run" / "pathways")
    untouched = Gates(load_model(str(tmp_path / "base"), device="cpu"), 2)
    said = ask(untouched, asked(tmp_path / "train.jsonl"))
    torch.testing.assert_close(pathways.routing, said.routing)
    plain = AutoModelForCausalLM.from_pretrained(made).eval()
    dev = ask(Gates(plain, 2), asked(tmp_path / "dev.jsonl"))
    assert report["dev"] == {
        "n": 10,
        "correct_before": int(ask(untouched, asked(tmp_path / "dev.jsonl")).correct.sum()),
        "correct_after": int(dev.correct.sum()),
    }
    assert ("tune routers, λ = 1", 3) in progress.started
    assert progress.finished[-1].endswith(str(made))


def test_more_alignment_brings_routing_closer_to_its_neighbours(tmp_path: Path) -> None:
    """The point of it all: with a large λ the tuned model's manifold term is lower than with none."""
    ends = {}
    for weight in (0.0, 30.0):
        settings = world(tmp_path, weight=weight)
        settings = settings.model_copy(update={"optimiser": settings.optimiser.model_copy(update={"epochs": 3})})
        run = tmp_path / f"run-{weight}"
        made = train_roma(settings, run)
        pathways = load_pathways(run / "pathways")
        found = graph(pathways, settings.neighbours, 0)
        live = ask(Gates(load_model(str(made), device="cpu"), 2), asked(tmp_path / "train.jsonl")).routing.flatten(1)
        pulled = (live[:, None] - pathways.routing.flatten(1)[found.index]).square().sum(-1)
        ends[weight] = float((found.weight * pulled).sum(1).mean())
    assert ends[30.0] < 0.8 * ends[0.0]


def test_the_delta_alone_and_the_model_later(tmp_path: Path) -> None:
    settings = world(tmp_path, save="delta")
    made = train_roma(settings, tmp_path / "run")
    assert made.name == "router_delta.safetensors"
    assert not (tmp_path / "run" / "model").exists()
    applied = apply_delta(tmp_path / "base", made, tmp_path / "applied")
    whole = train_roma(world(tmp_path), tmp_path / "run")
    full = train_roma(world(tmp_path), tmp_path / "other")
    for folder in (applied, whole):
        assert (folder / "model.safetensors").read_bytes() == (full / "model.safetensors").read_bytes()


def test_resumed_is_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = world(tmp_path)
    whole = train_roma(settings, tmp_path / "whole")
    monkeypatch.setattr("fusionroute.moe.roma.roma.ReportSteps", lambda label, progress: Interrupt(at=2))
    with pytest.raises(KeyboardInterrupt):
        train_roma(settings, tmp_path / "parts")
    monkeypatch.undo()
    assert not (tmp_path / "parts" / "model").exists()
    progress = Recorder()
    parts = train_roma(settings, tmp_path / "parts", progress=progress)
    assert (2, "resumed") in progress.advanced
    assert "record pathways" not in [label for label, _ in progress.started]
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    train_roma(settings, tmp_path / "parts", progress=progress)
    assert "already finished" in progress.finished[-1]


def test_the_result_has_the_dtype_of_the_base(tmp_path: Path) -> None:
    """float16 trains in float32 on the CPU, and bfloat16 in its own with float32 steps."""
    for dtype in (torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        save_model(folder / "base", dtype=dtype)
        write_rows(folder / "train.jsonl", rows(24, seed=1))
        write_rows(folder / "dev.jsonl", rows(10, seed=2))
        made = train_roma(RoMASettings.parse(as_values(folder)), folder / "run")
        before, after = tensors(folder / "base"), tensors(made)
        assert {each.dtype for each in after.values()} == {dtype}
        assert sum(not torch.equal(before[name], after[name]) for name in before) == 2
        report = json.loads((folder / "run" / "roma.json").read_text())
        said = ask(Gates(load_model(str(made), device="cpu"), 2), asked(folder / "dev.jsonl"))
        assert report["dev"]["correct_after"] == int(said.correct.sum())


def test_controls_by_settings_alone(tmp_path: Path) -> None:
    values: dict[str, dict[str, Any]] = {
        "plain": {"weight": 0.0},
        "everywhere": {"layers": "all"},
        "random": {"neighbours": {"kind": "random"}},
        "ball": {"neighbours": {"epsilon": 0.5}},
        "first": {"tokens": {"where": "first", "count": 3}},
        "oracle": {"target": "oracle", "descent": {"steps": 2}},
    }
    results = {}
    for name, options in values.items():
        made = train_roma(world(tmp_path, save="delta", optimiser=SHORT, **options), tmp_path / name)
        results[name] = tensors(made.parent)
    assert len(results["everywhere"]) == 4
    gate = "model.layers.3.mlp.gate.weight"
    tuned = [results[name][gate] for name in values]
    for at, one in enumerate(tuned):
        assert not any(torch.equal(one, other) for other in tuned[:at])


def test_oracle_targets_are_the_oracles(tmp_path: Path) -> None:
    settings = world(tmp_path, target="oracle", descent={"steps": 3, "learning_rate": 0.05})
    prepared = prepare(settings, tmp_path / "run", Silent())
    gates = Gates(load_model(str(tmp_path / "base"), device="cpu"), 2)
    expected = best_routing(gates, prepared.encoded, Descent(3, 0.05))
    torch.testing.assert_close(prepared.targets.table[:, 0], expected.flatten(1))
    assert prepared.targets.index.flatten().tolist() == list(range(24))
    assert prepared.targets.weight.eq(1).all()
    progress = Recorder()
    again = prepare(settings, tmp_path / "run", progress)
    assert torch.equal(again.targets.table, prepared.targets.table)
    assert "search the best routing" not in [label for label, _ in progress.started]


def test_routing_at_the_last_token_is_what_was_recorded(tmp_path: Path) -> None:
    prepared = prepare(world(tmp_path), tmp_path / "run", Silent())
    found = routing_at(prepared.gates, prepared.encoded, "last", 2, pad_id=0, batch_size=5)
    torch.testing.assert_close(found[:, 1], prepared.pathways.routing.flatten(1))
    one = prepared.encoded[3]
    with prepared.gates.reading() as tap:
        prepared.gates.model(torch.tensor([one.prompt]))
    torch.testing.assert_close(found[3], tap.routing().flatten(1)[-2:])


def test_nobody_is_their_own_neighbour_and_all_neighbours_succeeded(tmp_path: Path) -> None:
    pathways = prepare(world(tmp_path), tmp_path / "run", Silent()).pathways
    for how in (NeighbourSettings(), NeighbourSettings(kind="random"), NeighbourSettings(epsilon=0.1)):
        found = graph(pathways, how, seed=0)
        is_there = found.weight > 0
        own = torch.arange(24)[:, None].expand_as(found.index)
        assert not (found.index == own)[is_there].any()
        assert pathways.correct[found.index[is_there]].all()


def test_questions_without_neighbours_are_told(tmp_path: Path) -> None:
    progress = Recorder()
    prepared = prepare(world(tmp_path, neighbours={"epsilon": 0.7}), tmp_path / "run", progress)
    assert prepared.found is not None
    assert 0 < prepared.found.empty < 24
    wanted = f"{prepared.found.empty} of 24 questions have no neighbour at least 0.7 similar (ε)"
    assert [message for message in progress.finished if message.startswith(wanted)]
    progress = Recorder()
    prepare(world(tmp_path), tmp_path / "other", progress)
    assert "no neighbour" not in " ".join(progress.finished)


def interrupted(settings: RoMASettings, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fusionroute.moe.roma.roma.ReportSteps", lambda label, progress: Interrupt(at=2))
        with pytest.raises(KeyboardInterrupt):
            train_roma(settings, run)


def files(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_a_continued_run_mixes_no_questions_and_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, run = world(tmp_path, save="delta"), tmp_path / "run"
    interrupted(settings, run, monkeypatch)
    before = files(run)
    write_rows(tmp_path / "train.jsonl", rows(24, seed=7))
    with pytest.raises(DataError, match=r"holds pathways of something else.*data was"):
        train_roma(settings, run)
    write_rows(tmp_path / "train.jsonl", rows(24, seed=1))
    save_model(tmp_path / "base", "olmoe", initializer_range=0.03)
    with pytest.raises(DataError, match=r"holds pathways of something else.*weights was"):
        train_roma(settings, run)
    assert files(run) == before
    train_roma(settings, run, overwrite=True)


def test_a_finished_run_is_not_taken_for_one_on_other_files(tmp_path: Path) -> None:
    settings, run = world(tmp_path, save="delta"), tmp_path / "run"
    train_roma(settings, run)
    for name, seed in (("train", 1), ("dev", 2)):
        count = 24 if name == "train" else 10
        write_rows(tmp_path / f"{name}.jsonl", rows(count, seed=7))
        with pytest.raises(OutputExistsError, match=rf"a finished run on other questions: data\.{name} changed"):
            train_roma(settings, run)
        write_rows(tmp_path / f"{name}.jsonl", rows(count, seed=seed))
    train_roma(settings, run)
    save_model(tmp_path / "base", "olmoe", initializer_range=0.03)
    with pytest.raises(CheckpointError, match="has other routers"):
        train_roma(settings, run)


def refusal(settings: RoMASettings, run: Path, error: type[FusionRouteError]) -> str:
    with pytest.raises(error) as caught:
        train_roma(settings, run)
    assert not (run / "checkpoints").exists(), "it must be refused before training"
    return str(caught.value)


def test_what_cannot_work_is_refused_before_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "the model has 4" in refusal(world(tmp_path, layers=9), run, SettingsError)
    assert "places run from -4 to 3" in refusal(world(tmp_path, layers=[1, 7]), run, SettingsError)
    far = refusal(world(tmp_path, tokens={"where": "last", "count": 90}), run, DataError)
    assert "the routing of 90 is to be aligned" in far
    hopeless = [{"prompt": f"{n}?", "answer": "no way that it writes this"} for n in range(5)]
    data = {"train": write_rows(tmp_path / "hopeless.jsonl", hopeless)}
    assert "answers 0 correctly" in refusal(world(tmp_path, data=data), run, DataError)
    missing = refusal(world(tmp_path, data={"train": "nowhere.jsonl"}), run, DataError)
    assert "no file of questions at nowhere.jsonl" in missing


def test_overlapping_sets_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    settings = world(tmp_path)
    known = read_questions(tmp_path / "train.jsonl")[4]
    leak = write_rows(tmp_path / "test.jsonl", [*rows(3, seed=9), {**known.as_row(), "prompt": known.text.upper()}])
    data = {"train": str(tmp_path / "train.jsonl"), "evaluation": leak}
    broken = world(tmp_path, data=data, model=str(tmp_path / "no-model"))
    assert "data.evaluation overlap: 1 of 24" in refusal(broken, tmp_path / "run", DataError)
    allowed = world(tmp_path, data=data, leakage={"allow_overlap": True, "threshold": 0.9999})
    train_roma(allowed, tmp_path / "run")
    assert "1 of 24" in json.loads((tmp_path / "run" / "roma.json").read_text())["overlaps"][0]
    both = {**data, "train": settings.data.train[0].source, "dev": leak}
    own = world(tmp_path, data={**both, "train": write_rows(tmp_path / "new.jsonl", rows(9, seed=4))})
    assert "data.evaluation overlap" in refusal(own, tmp_path / "third", DataError)


def test_near_duplicates_are_refused(tmp_path: Path) -> None:
    near = [{**row, "prompt": row["prompt"].replace("of", "if")} for row in rows(2, seed=1)]
    data = {"train": str(tmp_path / "train.jsonl"), "evaluation": write_rows(tmp_path / "test.jsonl", near)}
    message = refusal(world(tmp_path, data=data, leakage={"threshold": 0.9}), tmp_path / "run", DataError)
    assert "2 of 24 training questions" in message
    assert "0 word for word" in message
    assert "2 nearly" in message


def test_logits_that_overflow_are_refused_before_training(tmp_path: Path) -> None:
    settings = world(tmp_path, dtype="float16")
    model = load_model(str(tmp_path / "base"), device="cpu")
    with torch.no_grad():
        Gates(model, 2).parameters()[1].fill_(6e4)
    model.save_pretrained(tmp_path / "base")
    message = refusal(settings, tmp_path / "run", ModelOutputError)
    assert "bfloat16 or float32" in message


def test_other_settings_need_another_folder(tmp_path: Path) -> None:
    train_roma(world(tmp_path, save="delta"), tmp_path / "run")
    with pytest.raises(OutputExistsError, match=r"holds another run \(weight was 1.0, is now 2.0\)"):
        train_roma(world(tmp_path, weight=2.0), tmp_path / "run")
    train_roma(world(tmp_path, weight=2.0, save="delta"), tmp_path / "run", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"holds files but no settings\.yaml"):
        train_roma(world(tmp_path), tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "text.txt").is_file()


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="one process"):
        train_roma(world(tmp_path), tmp_path / "run")
