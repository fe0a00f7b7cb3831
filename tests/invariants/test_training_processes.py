"""Two processes with half a batch each train as one process with the whole of it, in both stages."""

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny
from fusionroute.training.run import train
from fusionroute.training.settings import TrainSettings
from tiny_training import logged, make_examples, make_pairs, router_weights, run_command, two_stages, write_rows

Launch = Callable[[dict[str, Any], Path], None]
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["fusionroute.training.run", "transformers.models.llama.modeling_llama"])
LOSSES = ("loss", "lm_loss", "routing_loss", "informative", "routing_accuracy", "grad_norm")
PAIR_LOSSES = (*LOSSES, "cdpo_loss", "bias", "preferred", "saturated")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """16 examples in stage 1, 8 of them and 8 pairs in stage 2, all in whole batches of 4: nobody repeats an item."""
    folder = tmp_path_factory.mktemp("world")
    written = two_stages(folder)
    write_rows(folder / "train.jsonl", make_examples(16))
    given = written["data"] | {"pairs": write_rows(folder / "pairs.jsonl", make_pairs(8))}
    stages = {stage: written[stage] | {"batch_size": 4, "scheduler": "constant"} for stage in ("sft", "cdpo")}
    return {key: written[key] for key in written if key != "pairs"} | {"data": given} | stages


def half_batches(options: dict[str, Any], folder: Path) -> list[str]:
    """The command of each process."""
    halved = {stage: options[stage] | {"batch_size": 2} for stage in ("sft", "cdpo")}
    (folder / "team.yaml").write_text(yaml.safe_dump(options | halved, sort_keys=False))
    return ["train", str(folder / "team.yaml"), "--output", str(folder / "two")]


def by_two_forks(options: dict[str, Any], folder: Path) -> None:
    """What a launcher does, for processes that need not import the libraries again."""
    command, address = half_batches(options, folder), {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(2):
        environment = address | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        arguments = (command, folder / f"process{rank}", "", 0, environment)
        started.append(PROCESSES.Process(target=run_command, args=arguments))
        started[-1].start()
    for rank, process in enumerate(started):
        process.join(240)
        assert process.exitcode == 0, (folder / f"process{rank}.log").read_text()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def by_torchrun(options: dict[str, Any], folder: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(Path(tiny.__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [*launcher, "-m", "fusionroute", *half_batches(options, folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("launch", "changes"),
    [
        (by_two_forks, {}),
        pytest.param(by_two_forks, {"gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param(by_torchrun, {"group_by_length": True}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(launch: Launch, changes: dict[str, Any], options: Any, tmp_path: Path) -> None:
    """Sums are taken in another order, and AdamW, which divides by a gradient's size, carries the last digits of small
    gradients from step to step: after four steps of 1e-3 weights differ by some 1e-6.
    """
    torch.set_num_threads(1)
    gc.freeze()
    options = options | {stage: options[stage] | changes for stage in ("sft", "cdpo")}
    launch(options, tmp_path)
    one, two = train(TrainSettings.parse(options), tmp_path / "one"), tmp_path / "two"
    gc.unfreeze()
    assert {path.relative_to(one) for path in one.rglob("*") if "rng_state" not in path.name} == {
        path.relative_to(two) for path in two.rglob("*") if "rng_state" not in path.name
    }
    for stage, names in (("sft", LOSSES), ("cdpo", PAIR_LOSSES)):
        assert len(logged(one, stage)) == len(logged(two, stage)) == 4
        for left, right in zip(logged(one, stage), logged(two, stage), strict=True):
            for name in names:
                assert right[name] == pytest.approx(left[name], rel=1e-5, abs=1e-6), (stage, left["step"], name)
    for part in ("sft", "."):
        torch.testing.assert_close(router_weights(two / part), router_weights(one / part), rtol=1e-4, atol=1e-5)
