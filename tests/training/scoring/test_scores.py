import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

import tiny
from fusionroute.errors import DataError, ModelOutputError
from fusionroute.models.loading import ModelReference, load_model
from fusionroute.models.prompt import PromptFormat
from fusionroute.training.data.examples import list_column, prepare
from fusionroute.training.scoring import scores
from fusionroute.training.scoring.folder import ExpertFiles, Layout
from fusionroute.training.scoring.scores import load_scores, score, score_batch
from tiny_training import NAMES, Recorder, make_examples, save_model


def examples(count: int = 12) -> Dataset:
    return prepare(make_examples(count), PromptFormat(tiny.tokenizer(), "chat_template"), 60)[0]


@pytest.fixture
def experts(world: Path) -> dict[str, ModelReference]:
    return {name: ModelReference(model=str(world / name)) for name in NAMES}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models in the order in which they are loaded; each must be gone before the next one comes."""
    names: list[str] = []
    alive: list[weakref.ref[Any]] = []

    def load(reference: ModelReference, **options: Any) -> Any:
        assert all(model() is None for model in alive), "two experts in memory"
        names.append(Path(reference.model).name)
        model = load_model(reference, **options)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(scores, "load_model", load)
    return names


def test_scores_are_what_each_expert_says_alone(
    world: Path, experts: dict[str, ModelReference], loaded: list[str], tmp_path: Path
) -> None:
    dataset = examples()
    score(dataset, experts, tiny.tokenizer(), tmp_path, batch_size=3, examples_per_file=5)
    assert sorted(path.name for path in (tmp_path / "code").iterdir()) == [f"0000{n}.parquet" for n in range(3)]
    scored = load_scores(tmp_path, NAMES)
    assert loaded == list(NAMES)
    columns = [f"{kind}.{name}" for kind in ("nll", "top_choice") for name in NAMES]
    assert scored.column_names == ["input_ids", "prompt_length", "row", *columns]
    assert scored.select_columns(dataset.column_names)[:] == dataset[:]
    for name in NAMES:
        model = load_model(world / name, device="cpu")
        for row in scored:
            ids, start = torch.tensor([row["input_ids"]]), row["prompt_length"]
            with torch.no_grad():
                said = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
            nll = -said.gather(-1, ids[0, start:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(row[f"nll.{name}"]), nll, rtol=1e-5, atol=1e-5)
            assert row[f"top_choice.{name}"] == said.argmax(-1).tolist()


def test_score_batch_speaks_of_each_next_token() -> None:
    nll, top = score_batch(
        tiny.language_model(), torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1] * 3, [1, 1, 0]])
    )
    assert nll.shape == top.shape == (2, 2)
    assert nll.dtype == torch.float32
    assert top.dtype == torch.int32
    assert not nll.requires_grad


def test_rows_may_be_selected_before(experts: dict[str, ModelReference], tmp_path: Path) -> None:
    dataset, expert = examples(), {"math": experts["math"]}
    score(dataset.select([7, 2, 5]), expert, tiny.tokenizer(), tmp_path / "three", batch_size=1)
    score(dataset, expert, tiny.tokenizer(), tmp_path / "all", batch_size=1)
    assert load_scores(tmp_path / "three")[:] == load_scores(tmp_path / "all").select([7, 2, 5])[:]


@pytest.fixture
def at_once(experts: dict[str, ModelReference], tmp_path: Path) -> dict[str, list[Any]]:
    """What an uninterrupted scoring gives, with the settings of `SCRIPT`."""
    folder = tmp_path / "at_once"
    score(examples(40), two(experts), tiny.tokenizer(), folder, batch_size=4, examples_per_file=8)
    return load_scores(folder)[:]


def two(experts: dict[str, ModelReference]) -> dict[str, ModelReference]:
    return {name: experts[name] for name in NAMES[:2]}


def continued(folder: Path, experts: dict[str, ModelReference], progress: Recorder | None = None) -> dict[str, Any]:
    # Neither the size of a file nor that of a batch may change what is there
    score(examples(40), two(experts), tiny.tokenizer(), folder, batch_size=4, examples_per_file=3, progress=progress)
    return load_scores(folder)[:]


def test_an_interrupted_scoring_goes_on_where_it_stopped(
    experts: dict[str, ModelReference], loaded: list[str], at_once: dict[str, Any], tmp_path: Path, recorder: Recorder
) -> None:
    class StopsInCode(Recorder):
        def advance(self, n: int, note: str = "") -> None:
            super().advance(n, note)
            if self.started[-1][0] == "score code" and sum(n for n, _ in self.advanced) > 40 + 20:
                raise KeyboardInterrupt

    folder = tmp_path / "scores"
    with pytest.raises(KeyboardInterrupt):
        score(
            examples(40),
            two(experts),
            tiny.tokenizer(),
            folder,
            batch_size=4,
            examples_per_file=8,
            progress=StopsInCode(),
        )
    assert len(list((folder / "code").iterdir())) == 2
    with pytest.raises(DataError, match="no scores of code; run fusionroute score again"):
        load_scores(folder, NAMES[:2])
    loaded.clear()
    assert continued(folder, experts, recorder) == at_once
    assert loaded == ["code"]
    assert recorder.started == [("score code", 40)]
    assert recorder.advanced == [(16, "resumed"), *[(4, "")] * 6]
    assert recorder.finished[0] == "math: scored before"
    loaded.clear()
    assert continued(folder, experts) == at_once
    assert loaded == []


def test_files_that_do_not_fit_are_scored_again(
    experts: dict[str, ModelReference],
    loaded: list[str],
    at_once: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, folder = tmp_path / "at_once", tmp_path / "scores"
    shutil.copytree(whole, folder)
    forget(folder, "math")
    (folder / "math" / "00000.parquet").write_bytes(b"PAR1 half a file")
    shutil.copy(whole / "code" / "00001.parquet", folder / "math" / "00001.parquet")  # another expert's
    shutil.copy(whole / "math" / "00003.parquet", folder / "math" / "00002.parquet")  # other examples
    (folder / "math" / ".00004.parquet.tmp").write_bytes(b"what a killed run leaves")
    (folder / "math" / "00004.parquet").unlink()
    loaded.clear()
    assert continued(folder, experts) == at_once
    assert loaded == ["math"]
    assert len(caplog.messages) == 3
    assert "00000.parquet cannot be read" in caplog.messages[0]
    assert all("holds scores of something else" in message for message in caplog.messages[1:])
    assert len(list((folder / "math").iterdir())) == 5


def forget(folder: Path, name: str) -> None:
    """Make it an expert whose scoring did not end."""
    recorded = json.loads((folder / "scores.json").read_text())
    del recorded["experts"][name], recorded["checksums"][name]
    (folder / "scores.json").write_text(json.dumps(recorded))


def test_half_an_expert_that_was_trained_on_is_not_continued(
    world: Path, loaded: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moving = tmp_path / "math"
    shutil.copytree(world / "math", moving)
    expert = {"math": ModelReference(model=str(moving))}
    score(examples(), expert, tiny.tokenizer(), tmp_path / "scores", examples_per_file=5)
    forget(tmp_path / "scores", "math")
    (tmp_path / "scores" / "math" / "00002.parquet").unlink()
    save_model(moving, seed=77)
    score(examples(), expert, tiny.tokenizer(), tmp_path / "scores")
    assert len(caplog.messages) == 2
    score(examples(), expert, tiny.tokenizer(), tmp_path / "new", examples_per_file=5)
    assert load_scores(tmp_path / "scores")[:] == load_scores(tmp_path / "new")[:]


SCRIPT = """
import os, resource, sys, time
import torch
import tiny
from fusionroute.errors import DataError
from fusionroute.models.loading import ModelReference
from fusionroute.models.prompt import PromptFormat
from fusionroute.training.data.examples import prepare
from fusionroute.training.scoring.scores import score
from tiny_training import NAMES, Recorder, make_examples

what, world, folder = sys.argv[1:]
torch.set_num_threads(1)

class Watcher(Recorder):
    def advance(self, n, note=""):
        super().advance(n, note)
        if what == "slow":
            time.sleep(0.1)
        if what == "full" and len(self.advanced) == 14:  # in the second file of the second expert
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

dataset, _ = prepare(make_examples(40), PromptFormat(tiny.tokenizer(), "chat_template"), 60)
experts = {name: ModelReference(model=f"{world}/{name}") for name in NAMES[:2]}
try:
    score(dataset, experts, tiny.tokenizer(), folder, batch_size=4, examples_per_file=8, progress=Watcher())
except DataError as error:
    sys.exit(str(error))
"""


def start(what: str, world: Path, folder: Path, *launcher: str) -> "subprocess.Popen[str]":
    script = folder.with_name(f"{what}.py")
    script.write_text(SCRIPT)
    search = os.pathsep.join([str(Path(tiny.__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(script), what, str(world), str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_killed_scoring_goes_on_where_it_stopped(
    world: Path, experts: dict[str, ModelReference], at_once: dict[str, Any], tmp_path: Path, recorder: Recorder
) -> None:
    folder = tmp_path / "scores"
    with start("slow", world, folder) as process:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("math/0*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert len(list(folder.glob("math/0*"))) < 5
    assert continued(folder, experts, recorder) == at_once
    assert recorder.advanced[0][1] == "resumed"


def test_a_full_disk_is_named_and_scoring_goes_on_when_there_is_room(
    world: Path, experts: dict[str, ModelReference], at_once: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "scores"
    with start("full", world, folder) as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    failed = folder / "code" / "00001.parquet"
    assert f"{failed} could not be written" in said
    assert "GiB free on that disk. Make room and run the same command again" in said
    assert [path.name for path in failed.parent.iterdir()] == ["00000.parquet"]
    assert continued(folder, experts) == at_once


@pytest.mark.slow
def test_two_processes_give_what_one_gives_and_continue_what_it_began(
    world: Path, at_once: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "scores"
    shutil.copytree(tmp_path / "at_once", folder)
    for name in NAMES[:2]:
        forget(folder, name)
    shutil.rmtree(folder / "math")
    kept = folder / "code" / "00001.parquet"
    for path in kept.parent.iterdir():
        if path != kept:
            path.unlink()
    written = kept.stat().st_mtime_ns
    with start("share", world, folder, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2") as process:
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert load_scores(folder)[:] == at_once
    assert kept.stat().st_mtime_ns == written


def test_changed_files_are_refused(experts: dict[str, ModelReference], tmp_path: Path) -> None:
    score(examples(), two(experts), tiny.tokenizer(), tmp_path, examples_per_file=5)
    first = tmp_path / "math" / "00000.parquet"
    table = pq.read_table(first)
    nll = table["nll"].to_pylist()
    nll[0][0] += 1
    pq.write_table(
        table.set_column(0, table.schema.field("nll"), pa.array([nll[0], *nll[1:]], table["nll"].type)), first
    )
    with pytest.raises(
        DataError, match=r"math/00000\.parquet was changed since it was scored; delete it and score again"
    ):
        load_scores(tmp_path)
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"math/00000\.parquet cannot be read"):
        load_scores(tmp_path)
    first.unlink()
    with pytest.raises(DataError, match="has no scores of math"):
        load_scores(tmp_path)
    score(examples(), two(experts), tiny.tokenizer(), tmp_path)
    recorded = json.loads((tmp_path / "scores.json").read_text())
    recorded["checksums"]["code"] = recorded["checksums"]["math"]
    (tmp_path / "scores.json").write_text(json.dumps(recorded))
    assert load_scores(tmp_path, ["math"])["row"][:] == list(range(1, 13))
    with pytest.raises(DataError, match=f"{tmp_path / 'code'} was changed"):
        load_scores(tmp_path)
    pq.write_table(examples(11).data.table, tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"data\.parquet was changed since it was scored"):
        load_scores(tmp_path)


def test_a_number_takes_no_more_than_its_bytes(tmp_path: Path) -> None:
    """512 examples of 300 answer tokens, as hard to pack as they come: losses at random, of 128,000 tokens."""
    dice = np.random.default_rng(0)
    ids = pa.array(np.zeros((512, 301), np.int32).tolist(), pa.large_list(pa.int32()))
    dataset = Dataset(pa.table({"input_ids": ids, "prompt_length": [1] * 512}))
    record = {"data": {}, "vocabulary": "", "experts": {"math": {}}}
    files = ExpertFiles(tmp_path, "math", Layout.of(dataset, 512), record)
    offsets = np.arange(0, 512 * 300 + 1, 300)
    nll, top = dice.gamma(0.3, 2.0, offsets[-1]).astype(np.float32), dice.integers(0, 128_000, offsets[-1], np.int32)
    files.write(0, pa.table({"nll": list_column(offsets, nll), "top_choice": list_column(offsets, top)}))
    assert files.path(0).stat().st_size <= 8 * offsets[-1]
    assert files.has(0)


def test_scores_of_something_else_are_refused(world: Path, experts: dict[str, ModelReference], tmp_path: Path) -> None:
    folder, moving = tmp_path / "scores", tmp_path / "math"
    shutil.copytree(world / "math", moving)
    experts = {"math": ModelReference(model=str(moving))}
    score(examples(), experts, tiny.tokenizer(), folder)

    def refused(message: str, dataset: Dataset, tokenizer: Any, **options: Any) -> None:
        with pytest.raises(DataError, match=message):
            score(dataset, experts, tokenizer, folder, **options)

    refused("data: examples was 12, is now 11", examples(11), tiny.tokenizer())
    longer = tiny.tokenizer()
    longer.add_tokens(["<new>"])
    refused("tokenizer: vocabulary was", examples(), longer)
    refused("expert 'math': dtype was auto, is now bfloat16", examples(), tiny.tokenizer(), dtype="bfloat16")
    shutil.rmtree(moving)
    save_model(moving, seed=77)  # same shapes, same config, other weights
    refused("expert 'math': content was", examples(), tiny.tokenizer())


def test_when_files_were_written_does_not_matter(world: Path, loaded: list[str], tmp_path: Path) -> None:
    moving = tmp_path / "math"
    shutil.copytree(world / "math", moving)
    for _ in range(2):
        score(examples(), {"math": ModelReference(model=str(moving))}, tiny.tokenizer(), tmp_path / "scores")
        (moving / "model.safetensors").touch()
    assert loaded == ["math"]


def test_an_expert_without_finite_numbers_is_refused(tmp_path: Path) -> None:
    model = tiny.language_model()
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelOutputError, match="expert 'broken' gives a loss of nan on row 12 of the data"):
        score(examples(), {"broken": ModelReference(model=str(tmp_path / "broken"))}, tiny.tokenizer(), tmp_path / "s")


def test_folders_that_hold_no_scores(experts: dict[str, ModelReference], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no scores"):
        load_scores(tmp_path)
    score(examples(), {"math": experts["math"]}, tiny.tokenizer(), tmp_path)
    assert load_scores(tmp_path).column_names[3:] == ["nll.math", "top_choice.math"]
    assert load_scores(tmp_path, [])[:] == examples()[:]
    forget(tmp_path, "math")
    with pytest.raises(DataError, match="has no scores of any expert"):
        load_scores(tmp_path)
    (tmp_path / "scores.json").write_text(json.dumps({"data": {}}))
    with pytest.raises(DataError, match="not the record of scores"):
        load_scores(tmp_path)
