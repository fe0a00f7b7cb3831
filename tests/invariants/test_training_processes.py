"""Two processes with half a batch each train as one process with the whole of it, in both stages."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny
from fusionroute.training.run import train
from fusionroute.training.settings import TrainSettings
from tiny_training import logged, make_examples, make_pairs, router_weights, two_stages, write_rows

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


def by_two_processes(options: dict[str, Any], folder: Path) -> Path:
    halved = {stage: options[stage] | {"batch_size": 2} for stage in ("sft", "cdpo")}
    (folder / "team.yaml").write_text(yaml.safe_dump(options | halved, sort_keys=False))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(Path(tiny.__file__).parent), "OMP_NUM_THREADS": "1"}
    run = folder / "two"
    done = subprocess.run(
        [*launcher, "-m", "fusionroute", "train", str(folder / "team.yaml"), "--output", str(run)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize("is_grouped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_train_as_one(is_grouped: bool, options: dict[str, Any], tmp_path: Path) -> None:
    """Sums are taken in another order, and AdamW, which divides by a gradient's size, carries the last digits of small
    gradients from step to step: after four steps of 1e-3 weights differ by some 1e-6.
    """
    torch.set_num_threads(1)
    gc.freeze()
    grouped = {stage: options[stage] | {"group_by_length": is_grouped} for stage in ("sft", "cdpo")}
    one = train(TrainSettings.parse(options | grouped), tmp_path / "one")
    two = by_two_processes(options | grouped, tmp_path)
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
