import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from fusionroute.errors import CheckpointError, DataError, OutputExistsError, SettingsError
from fusionroute.models.gates import Gates
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.asking import ask
from fusionroute.moe.questions.questions import encode_questions, read_questions
from fusionroute.moe.roma.roma import train_roma
from fusionroute.moe.roma.router_delta import DELTA_FILE, load_delta
from fusionroute.moe.roma.sweep import Point, best_of, sweep
from fusionroute.moe.roma.watching import ReportSteps
from fusionroute.progress import Progress
from tiny_roma import Interrupt, save_model, world
from tiny_training import Recorder


def test_every_point_is_what_a_run_of_its_own_gives(tmp_path: Path) -> None:
    settings = world(tmp_path, sweep=[20.0])
    found = sweep(settings, tmp_path / "sweep")
    assert [point.weight for point in found.points] == [0.0, 20.0]
    encoded = encode_questions(read_questions(tmp_path / "dev.jsonl"), PromptFormat(load_tokenizer(tmp_path / "base")))
    for point in found.points:
        alone = settings.model_copy(update={"weight": point.weight})
        made = train_roma(alone, tmp_path / f"alone-{point.weight}")
        tuned, _ = load_delta(tmp_path / "sweep" / "points" / str(point.weight))
        expected, _ = load_delta(made.parent)
        assert all(torch.equal(tuned[name], expected[name]) for name in expected)
        said = ask(Gates(load_model(str(made), device="cpu"), 2), encoded)
        assert (point.correct, point.n) == (int(said.correct.sum()), 10)
        assert point.loss == pytest.approx(float(said.loss.mean()), rel=1e-5)
        assert sum(right for right, _ in point.tasks.values()) == point.correct
        if point.weight == found.chosen:
            assert (tmp_path / "sweep/model/model.safetensors").read_bytes() == (
                made / "model.safetensors"
            ).read_bytes()
    best = min(found.points, key=lambda point: (-point.mean, point.loss))
    assert found.chosen == best.weight
    saved = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [point["weight"] for point in saved["points"]] == [0.0, 20.0]
    assert saved["base"]["weight"] is None


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, progress = world(tmp_path, sweep=[2.0], save="delta"), Recorder()
    whole = sweep(settings, tmp_path / "whole")

    def stops_within_the_second(label: str, progress: Progress) -> TrainerCallback:
        return Interrupt(at=2) if label.endswith("λ = 2") else ReportSteps(label, progress)

    with monkeypatch.context() as patch:
        patch.setattr("fusionroute.moe.roma.roma.ReportSteps", stops_within_the_second)
        with pytest.raises(KeyboardInterrupt):
            sweep(settings, tmp_path / "parts")
    assert (tmp_path / "parts/points/0.0" / DELTA_FILE).is_file()
    assert not (tmp_path / "parts/points/2.0" / DELTA_FILE).exists()
    assert sweep(settings, tmp_path / "parts", progress=progress) == whole
    labels = [label for label, _ in progress.started]
    assert "tune routers, λ = 0" not in labels
    assert (2, "resumed") in progress.advanced
    for name in (DELTA_FILE, f"points/0.0/{DELTA_FILE}", f"points/2.0/{DELTA_FILE}", "sweep.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_point_of_another_base_is_refused(tmp_path: Path) -> None:
    settings, run = world(tmp_path, sweep=[], save="delta"), tmp_path / "sweep"
    sweep(settings, run)
    save_model(tmp_path / "base", "olmoe", initializer_range=0.03)
    with pytest.raises(DataError, match=r"holds pathways of something else.*weights was"):
        sweep(settings, run)
    shutil.rmtree(run / "pathways")
    with pytest.raises(CheckpointError, match="has other routers"):
        sweep(settings, run)


def test_what_was_swept_over_is_told(tmp_path: Path) -> None:
    settings = world(tmp_path, sweep=[], save="delta", neighbours={"epsilon": 0.99})
    sweep(settings, tmp_path / "sweep")
    told = json.loads((tmp_path / "sweep/sweep.json").read_text())
    train_roma(settings, tmp_path / "alone")
    alone = json.loads((tmp_path / "alone/roma.json").read_text())
    shared = set(alone) - {"weight", "steps", "last_log", "dev"}
    assert shared >= {"overlaps", "sigma", "answered_correctly", "empty_neighbourhoods", "layers", "trained_share"}
    assert {name: told[name] for name in shared} == {name: alone[name] for name in shared}
    assert told["empty_neighbourhoods"] > 0


def test_every_task_counts_the_same() -> None:
    """19 of 20 and 0 of 2 against 15 of 20 and 1 of 2: more right answers, and the worse mean."""
    many, fair = (
        Point(weight, sum(right for right, _ in tasks.values()), 22, 1.0, tasks)
        for weight, tasks in ((0.0, {"a": (19, 20), "b": (0, 2)}), (1.0, {"a": (15, 20), "b": (1, 2)}))
    )
    assert many.correct > fair.correct
    assert best_of([many, fair]) is fair
    assert fair.as_json()["mean_of_tasks"] == 0.625
    tenths = [{"a": (1, 10), "b": (2, 10)}, {"a": (3, 10), "b": (0, 10)}]  # in floats, 0.1 + 0.2 is not 0.3
    first, second = (Point(weight, 3, 20, 1.0, tasks) for weight, tasks in zip((0.0, 1.0), tenths, strict=True))
    assert best_of([second, first]) is first


def test_refusals(tmp_path: Path) -> None:
    settings = world(tmp_path, save="delta", sweep=[])
    without = settings.model_copy(update={"data": settings.data.model_copy(update={"dev": ()})})
    with pytest.raises(SettingsError, match=r"name data\.dev"):
        sweep(without, tmp_path / "sweep")
    sweep(settings, tmp_path / "sweep")
    with pytest.raises(OutputExistsError, match="sweep was"):
        sweep(settings.model_copy(update={"sweep": (3.0,)}), tmp_path / "sweep")
    with pytest.raises(OutputExistsError, match="holds what `roma sweep` wrote"):
        train_roma(settings, tmp_path / "sweep")
