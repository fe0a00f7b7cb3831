import json
from pathlib import Path

import pytest
import torch

from fusionroute.errors import OutputExistsError, SettingsError
from fusionroute.models.gates import Gates
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.asking import ask
from fusionroute.moe.questions import encode_questions, read_questions
from fusionroute.moe.roma import train_roma
from fusionroute.moe.router_delta import load_delta
from fusionroute.moe.sweep import sweep
from tiny_roma import world
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
    best = min(found.points, key=lambda point: (-point.correct, point.loss))
    assert found.chosen == best.weight
    saved = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [point["weight"] for point in saved["points"]] == [0.0, 20.0]
    assert saved["base"]["weight"] is None


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    settings, progress = world(tmp_path, sweep=[2.0], save="delta"), Recorder()
    first = sweep(settings, tmp_path / "sweep")
    (tmp_path / "sweep" / "points" / "2.0" / "router_delta.safetensors").unlink()
    again = sweep(settings, tmp_path / "sweep", progress=progress)
    assert again == first
    labels = [label for label, _ in progress.started]
    assert "tune routers, λ = 0" not in labels


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
