"""Whatever stops a training run, and wherever: the same command ends in the same weights, to the last bit."""

import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny
from fusionroute.training.run import train
from fusionroute.training.settings import TrainSettings
from tiny_training import Recorder, logged, router_weights, run_command, two_stages

# Parts of a run's folder, in the order in which they are made
PLACES = ("scores", "checkpoints/sft", "sft", "pairs", "pair_scores", "checkpoints/cdpo", "router", "team.")
PROCESSES = get_context("forkserver")  # every command in a new process, which need not import the libraries again
PROCESSES.set_forkserver_preload(["fusionroute.training.run", "transformers.models.llama.modeling_llama"])


@pytest.fixture(scope="module", autouse=True)
def one_thread_and_little_garbage() -> Iterator[None]:
    """Sums in one order only. Scoring collects garbage: slow through all that the libraries hold, unless frozen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both stages, two epochs each, a checkpoint after every step, several files of scores for each expert."""
    written = two_stages(tmp_path_factory.mktemp("world"))
    often = {"save_steps": 1, "epochs": 2}
    stages = {stage: written[stage] | often for stage in ("sft", "cdpo")}
    return written | stages | {"score": {"examples_per_file": 8, "batch_size": 4}}


@pytest.fixture(scope="module")
def team(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "team.yaml"
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return path


def command(team: Path, run: Path, place: str = "", at: int = 0) -> int:
    """Exit code of ``fusionroute train``, killed before the change ``at`` of ``place`` (0 = not at all)."""
    process = PROCESSES.Process(target=run_command, args=(["train", str(team), "--output", str(run)], run, place, at))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted(team: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert command(team, run) == 0, run.with_suffix(".log").read_text()
    return run


def assert_equal(run: Path, uninterrupted: Path) -> None:
    assert (run / "pairs.jsonl").read_bytes() == (uninterrupted / "pairs.jsonl").read_bytes()
    for part in ("sft", "."):
        torch.testing.assert_close(router_weights(run / part), router_weights(uninterrupted / part), rtol=0, atol=0)
    left = {path.relative_to(run) for path in run.rglob("*") if ".tmp" not in path.name}
    assert left >= {path.relative_to(uninterrupted) for path in uninterrupted.rglob("*")}


def changes(run: Path, place: str) -> int:
    """How many an uninterrupted run makes."""
    return sum(line.startswith(place) for line in run.with_suffix(".changed").read_text().splitlines())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 9))])
def test_a_run_killed_in_every_stage_ends_as_an_uninterrupted_one(
    seed: int, team: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Kill -9 just before a random one of the changes that a stage makes on disk; between them nothing is won."""
    draw = random.Random(seed)
    for place in PLACES:
        at = draw.randint(1, changes(uninterrupted, place))
        assert command(team, tmp_path / "run", place, at) == -signal.SIGKILL, (place, at)
    assert command(team, tmp_path / "run") == 0, (tmp_path / "run.log").read_text()
    assert_equal(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize(("place", "at"), [("settings", 2), ("pairs", 3)])
def test_a_temporary_file_alone_is_no_reason_to_refuse_a_folder(
    place: str, at: int, team: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Killed before the first file of a folder has its name, the file that tells a run's folder from a foreign one."""
    assert command(team, tmp_path / "run", place, at) == -signal.SIGKILL
    assert command(team, tmp_path / "run") == 0, (tmp_path / "run.log").read_text()
    assert_equal(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_a_command_killed_at_random_times_ends_as_an_uninterrupted_one(
    team: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """In a process of its own and from outside, so that files may be cut in the middle of a write."""
    draw, run = random.Random(0), tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(Path(tiny.__file__).parent), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "fusionroute", "train", str(team), "--output", str(run)]
    codes = []
    while not codes or codes[-1] != 0:
        started = time.time()
        with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and not began(run, started):
                time.sleep(0.01)
            if len(codes) < 12:
                time.sleep(draw.uniform(0, 1.5))
                process.kill()
        codes.append(process.returncode)
        assert codes[-1] in (0, -signal.SIGKILL)
    assert len(codes) > 3
    assert_equal(run, uninterrupted)


def began(run: Path, started: float) -> bool:
    settings = run / "settings.yaml"
    return settings.exists() and settings.stat().st_mtime > started


class PressCtrlC(Recorder):
    """Ctrl-C once ``label`` has made two steps."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label, self.left = label, 2

    def advance(self, n: int, note: str = "") -> None:
        super().advance(n, note)
        self.left -= self.started[-1][0] == self.label
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_batches_of_like_length_go_on_in_the_middle_of_an_epoch(options: dict[str, Any], tmp_path: Path) -> None:
    grouped = {stage: options[stage] | {"group_by_length": True, "save_steps": 500} for stage in ("sft", "cdpo")}
    settings = TrainSettings.parse(options | grouped)
    uninterrupted, run = train(settings, tmp_path / "uninterrupted"), tmp_path / "run"
    for label in ("train router", "preferences"):
        with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of"):
            train(settings, run, progress=PressCtrlC(label))
    train(settings, run)
    assert_equal(run, uninterrupted)
    assert all(logged(run, stage)[1]["epoch"] < 1 for stage in ("sft", "cdpo"))


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
def test_gradient_checkpointing_changes_nothing(
    lora: dict[str, Any] | None, options: dict[str, Any], tmp_path: Path
) -> None:
    """The same operations are done again, so what may differ is the order of float32 sums: seven digits, over steps."""
    options = options | {"router": options["router"] | {"lora": lora}}
    kept, again = (
        train(
            TrainSettings.parse(
                options
                | {stage: options[stage] | {"gradient_checkpointing": is_on, "epochs": 1} for stage in ("sft", "cdpo")}
            ),
            tmp_path / f"checkpointing_{is_on}",
        )
        for is_on in (False, True)
    )
    for stage in ("sft", "cdpo"):
        for one, other in zip(logged(kept, stage), logged(again, stage), strict=True):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(router_weights(kept), router_weights(again), rtol=1e-5, atol=1e-6)
