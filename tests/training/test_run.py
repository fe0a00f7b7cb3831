import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import fusionroute as fr
import tiny
from fusionroute.errors import DataError, OutputExistsError, SettingsError, VocabularyError
from fusionroute.models.loading import load_model
from fusionroute.training import stages
from fusionroute.training.run import score, sft, train
from fusionroute.training.settings import TrainSettings
from tiny_training import NAMES, Recorder, make_examples, save_model, write_rows


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return fr.Router.from_pretrained(folder / "router", device="cpu").state_dict()


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One uninterrupted run with the settings of the fixture ``options``; copied where a test changes it."""
    options = {
        "experts": {name: str(world / name) for name in NAMES},
        "router": {"init": str(world / "base")},
        "prompt": "chat_template",
        "data": {"train": str(world / "train.jsonl")},
        "sft": {"learning_rate": 1e-3, "batch_size": 4, "epochs": 2, "logging_steps": 1},
        "device": "cpu",
    }
    return train(TrainSettings.parse(options), tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def test_a_finished_team_loads_and_writes(finished: Path, world: Path) -> None:
    team = fr.Team.from_pretrained(finished, device="cpu")
    assert team.expert_names == NAMES
    assert team.prompt == "chat_template"
    assert tiny.EOS in team.eos_ids
    (completion,) = team.generate(["1+1="], max_new_tokens=4, ignore_eos=True)
    assert len(completion.token_ids) == 4
    assert {path.name for path in finished.iterdir()} == {
        *("settings.yaml", "scores", "checkpoints", "router", "README.md", "team.json")
    }
    before = fr.Router(load_model(str(world / "base"), device="cpu"), len(NAMES)).state_dict()
    assert all((before[name] - tensor).abs().sum() > 0 for name, tensor in weights(finished).items())


def test_a_finished_run_says_so_and_does_nothing(copy: Path, settings: TrainSettings, recorder: Recorder) -> None:
    changed = {path: path.stat().st_mtime_ns for path in copy.rglob("*.safetensors")}
    assert train(settings, copy, progress=recorder) == copy
    assert recorder.started == []
    assert recorder.finished == [f"{copy} is already finished; nothing to do"]
    assert all(path.stat().st_mtime_ns == at for path, at in changed.items())


def test_score_then_sft_is_train(finished: Path, settings: TrainSettings, tmp_path: Path, recorder: Recorder) -> None:
    with pytest.raises(DataError, match="holds no scores; make them with fusionroute score"):
        sft(settings, tmp_path / "run")
    assert score(settings, tmp_path / "run", progress=recorder) == tmp_path / "run" / "scores"
    assert sft(settings, tmp_path / "run", progress=recorder) == tmp_path / "run"
    torch.testing.assert_close(weights(tmp_path / "run"), weights(finished), rtol=0, atol=0)
    assert recorder.started == [*((f"score {name}", 12) for name in NAMES), ("train router", 6)]
    assert sum(n for n, _ in recorder.advanced) == 3 * 12 + 6
    assert recorder.advanced[-1][1].startswith("loss ")


class PressCtrlC(Recorder):
    """Ctrl-C once the router has trained so many steps."""

    def __init__(self, after: int, times: int = 1) -> None:
        super().__init__()
        self.after, self.times = after, times

    def advance(self, n: int, note: str = "") -> None:
        super().advance(n, note)
        is_training = self.started[-1][0] == "train router"
        self.after -= is_training
        if is_training and self.after == 0:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    finished: Path, settings: TrainSettings, tmp_path: Path, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of 6"):
        train(settings, tmp_path / "run", progress=PressCtrlC(after=2))
    assert "the same command continues" in caplog.text
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in (tmp_path / "run" / "checkpoints" / "sft").iterdir()] == ["checkpoint-2"]
    with pytest.raises(KeyboardInterrupt, match="stopped after step 5 of 6"):  # in the second epoch
        train(settings, tmp_path / "run", progress=PressCtrlC(after=4))
    train(settings, tmp_path / "run", progress=recorder)
    assert recorder.started == [("train router", 6)]
    assert [n for n, _ in recorder.advanced] == [5, 1]
    torch.testing.assert_close(weights(tmp_path / "run"), weights(finished), rtol=0, atol=0)


def test_a_second_ctrl_c_stops_at_once(copy: Path, settings: TrainSettings) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        sft(settings, copy, overwrite=True, progress=PressCtrlC(after=2, times=2))
    assert not list(copy.glob("checkpoints/*/*"))
    assert not (copy / "team.json").exists()


def test_another_runs_folder_is_refused_naming_the_difference(copy: Path, options: dict[str, Any]) -> None:
    for change, message in (
        ({"seed": 1}, "seed was 0, is now 1"),
        ({"sft": options["sft"] | {"epochs": 3}}, "sft.epochs was 2.0, is now 3.0"),
        ({"experts": {"math": options["experts"]["math"]}}, "experts.code.model was"),
        ({"experts": dict(reversed(options["experts"].items()))}, "the order of the experts"),
    ):
        with pytest.raises(OutputExistsError, match=message):
            train(TrainSettings.parse(options | change), copy)
    faster = {"score": {"batch_size": 2}, "sft": options["sft"] | {"save_steps": 1}}
    assert train(TrainSettings.parse(options | faster), copy) == copy


def test_scores_may_serve_another_training(
    copy: Path, finished: Path, options: dict[str, Any], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = TrainSettings.parse(options | {"seed": 1, "sft": options["sft"] | {"max_steps": 1}})
    with pytest.raises(OutputExistsError, match="seed was 0"):
        sft(other, copy)
    monkeypatch.setattr(stages, "score", None)  # must not be needed
    sft(other, copy, overwrite=True, progress=recorder)
    assert recorder.started == [("train router", 1)]
    assert (weights(copy)["route_head.weight"] - weights(finished)["route_head.weight"]).abs().sum() > 0


def test_overwrite_starts_anew_and_touches_nothing_else(
    copy: Path, finished: Path, settings: TrainSettings, recorder: Recorder
) -> None:
    (copy / "notes.txt").write_text("mine")
    train(settings, copy, overwrite=True, progress=recorder)
    assert len(recorder.started) == 4
    assert (copy / "notes.txt").read_text() == "mine"
    torch.testing.assert_close(weights(copy), weights(finished), rtol=0, atol=0)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_refused(overwrite: bool, settings: TrainSettings, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputExistsError, match="is no training run and is left alone"):
        train(settings, tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_changed_data_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    write_rows(data, make_examples(6))
    settings = TrainSettings.parse(options | {"data": {"train": str(data)}})
    score(settings, tmp_path / "run")
    write_rows(data, make_examples(7))
    with pytest.raises(DataError, match="data: examples was 6, is now 7"):
        train(settings, tmp_path / "run")


def test_models_that_do_not_fit_are_refused_before_any_weights_are_read(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "larger", 0, vocab_size=tiny.VOCABULARY + 8)
    (tmp_path / "larger" / "model.safetensors").unlink()
    monkeypatch.setattr(stages, "prepare", None)
    larger = options | {"experts": {"math": options["experts"]["math"], "code": str(tmp_path / "larger")}}
    with pytest.raises(VocabularyError, match="expert 'code' has a vocabulary of 269 token ids but the router has 261"):
        train(TrainSettings.parse(larger), tmp_path / "run")
    with pytest.raises(SettingsError, match=r"data\.max_length is 161 but a model of the team holds only 160"):
        train(TrainSettings.parse(options | {"data": options["data"] | {"max_length": 161}}), tmp_path / "run")
    # nothing was made with them yet, so mended settings may use the same folder
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"settings.yaml"}


def test_the_tokenizers_end_becomes_an_end_of_the_router(world: Path, options: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(world / "base", tmp_path / "base")
    base = load_model(str(world / "base"), device="cpu")
    base.generation_config.eos_token_id = 4
    base.save_pretrained(tmp_path / "base")
    settings = TrainSettings.parse(options | {"router": {"init": str(tmp_path / "base"), "head_bias": True}})
    router = stages.new_router(settings, tiny.tokenizer())
    assert router.generation_config.eos_token_id == [4, tiny.EOS]
    assert router.route_head.bias is not None


def test_checkpointing_and_bfloat16_run_and_the_router_keeps_its_kind(
    copy: Path, options: dict[str, Any], world: Path
) -> None:
    wanted = options["sft"] | {"gradient_checkpointing": True, "bf16": True, "accumulation": 3, "max_steps": 1}
    sft(TrainSettings.parse(options | {"sft": wanted}), copy, overwrite=True)
    assert weights(copy)["route_head.weight"].dtype == torch.float32
