"""What the tests of RoMA share: a tiny MoE model on disk, questions, and settings that train it in a second."""

import gc
import os
import random
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

import tiny
import tiny_moe
from fusionroute.moe.roma.settings import RoMASettings
from tiny_training import write_rows

gc.freeze()  # Trainer collects garbage when it ends, which is slow through all that the libraries hold


def save_model(folder: Path, family: str = "olmoe", dtype: torch.dtype = torch.float32, **options: Any) -> str:
    """With a byte tokenizer. ``max_shard_size`` cuts the weights into several files; other options are the config's."""
    save = {"max_shard_size": options.pop("max_shard_size")} if "max_shard_size" in options else {}
    tiny_moe.mixture(family, **options).to(dtype).save_pretrained(folder, **save)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with two options, of which a random model takes the right one half of the time; two tasks."""
    dice = random.Random(seed)
    made = []
    for _ in range(count):
        a, b = dice.sample(range(100, 1000), 2)
        options = [f"{a}", f"{b}"]
        task = dice.choice(["larger", "smaller"])
        answer = str((max if task == "larger" else min)(a, b))
        words = " ".join(dice.sample(["tin", "oak", "ash", "fir", "elm", "yew"], 3))
        made.append({"prompt": f"{words}: {task} of {a} {b}?", "answer": answer, "options": options, "task": task})
    return made


def world(folder: Path, family: str = "olmoe", **values: Any) -> RoMASettings:
    """A model, training and development questions in ``folder``, and settings over them."""
    if not (folder / "base").exists():
        save_model(folder / "base", family)
        write_rows(folder / "train.jsonl", rows(24, seed=1))
        write_rows(folder / "dev.jsonl", rows(10, seed=2))
    return RoMASettings.parse(as_values(folder) | values)


def as_values(folder: Path) -> dict[str, Any]:
    return {
        "model": str(folder / "base"),
        "data": {"train": str(folder / "train.jsonl"), "dev": str(folder / "dev.jsonl")},
        "layers": 2,
        "optimiser": {"batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 2},
        "device": "cpu",
        "leakage": {"threshold": 0.9999},  # sums of three digits are alike to a random model
    }


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, from however many files."""
    return {name: each for file in sorted(folder.glob("*.safetensors")) for name, each in load_file(file).items()}


class Interrupt(TrainerCallback):
    """Ctrl-C during a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.at:
            os.kill(os.getpid(), signal.SIGINT)
