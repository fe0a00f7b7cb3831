"""A small world on disk: three experts, a router's beginning, and examples to learn from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fusionroute.training.settings import TrainSettings
from tiny_training import NAMES, Recorder, make_examples, save_model, write_rows


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(NAMES):
        save_model(folder / name, seed)
    save_model(folder / "base", 9, initializer_range=0.05)
    write_rows(folder / "train.jsonl", make_examples(12))
    return folder


@pytest.fixture
def options(world: Path) -> dict[str, Any]:
    """A team file's values, as a person would write them; six optimizer steps."""
    return {
        "experts": {name: str(world / name) for name in NAMES},
        "router": {"init": str(world / "base")},
        "prompt": "chat_template",
        "data": {"train": str(world / "train.jsonl")},
        "sft": {"learning_rate": 1e-3, "batch_size": 4, "epochs": 2, "logging_steps": 1},
        "device": "cpu",
    }


@pytest.fixture
def settings(options: dict[str, Any]) -> TrainSettings:
    return TrainSettings.parse(options)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
