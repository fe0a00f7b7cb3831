"""What the tests of training share: models on disk, examples to learn from, a progress that remembers."""

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

import tiny
from fusionroute import Router
from fusionroute.cli import main
from fusionroute.training.run_folder import last_checkpoint

NAMES = ("math", "code", "chat")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "shutil.rmtree")  # as Python's audit names them


def save_model(folder: Path, seed: int, **overrides: Any) -> str:
    tiny.language_model("llama", seed, **overrides).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def make_examples(count: int) -> list[dict[str, Any]]:
    """Sums of mixed lengths; one chat among them, so that both forms are always in play."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"{n}+{n * n}=", "completion": f"{n + n * n}" + "!" * (n % 5)} for n in range(1, count)
    ]
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    return [*rows, {"messages": chat}]


def make_pairs(count: int) -> list[dict[str, Any]]:
    """Sums with a right and a wrong answer, of different lengths."""
    return [{"prompt": f"{n}+{n}=", "chosen": f"{2 * n}", "rejected": "no" * (n % 4 + 1)} for n in range(1, count + 1)]


class Recorder:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.advanced: list[tuple[int, str]] = []
        self.finished: list[str] = []

    def start(self, label: str, total: int) -> None:
        self.started.append((label, total))

    def advance(self, n: int, note: str = "") -> None:
        self.advanced.append((n, note))

    def finish(self, message: str) -> None:
        self.finished.append(message)


def two_stages(folder: Path, prompts: int = 24) -> dict[str, Any]:
    """Write a world into ``folder``; returns the values of a team file that trains both stages on it, in float32.

    A quarter of the bytes ends an answer of the router, else random models would hardly ever stop.
    """
    for seed, name in enumerate(NAMES):
        save_model(folder / name, seed)
    router = tiny.language_model("llama", 9, initializer_range=0.05)
    router.generation_config.eos_token_id = [tiny.EOS, *range(len(tiny.SPECIAL), tiny.VOCABULARY, 4)]
    router.save_pretrained(folder / "base")
    tiny.tokenizer().save_pretrained(folder / "base")
    pairs = {"checker": "tiny_training:by_bytes", "samples": 1, "max_new_tokens": 8}
    stage = {"learning_rate": 1e-3, "batch_size": 4, "logging_steps": 1}
    return {
        "experts": {name: str(folder / name) for name in NAMES},
        "router": {"init": str(folder / "base")},
        "prompt": "chat_template",
        "data": {"train": write_rows(folder / "train.jsonl", make_examples(12))},
        "sft": stage,
        "pairs": {"prompts": write_rows(folder / "prompts.jsonl", make_examples(prompts)), **pairs},
        "cdpo": stage,
        "device": "cpu",
    }


def by_bytes(rows: list[dict[str, Any]], answers: list[str]) -> list[float]:
    """A checker: arbitrary, but the same for the same answer."""
    return [float(sum(answer.encode()) % 11) for answer in answers]


def router_weights(folder: Path) -> dict[str, Tensor]:
    """Of the router in the team folder ``folder``."""
    return Router.from_pretrained(folder / "router", device="cpu").state_dict()


def logged(run: Path, stage: str) -> list[dict[str, float]]:
    """What a finished run logged at each step of ``sft`` or ``cdpo``, read from its last checkpoint."""
    folder = last_checkpoint(run / "checkpoints" / stage)
    assert folder is not None
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [log for log in history if "loss" in log]


def run_command(
    arguments: list[str], run: Path, place: str = "", at: int = 0, environment: dict[str, str] | None = None
) -> None:
    """``fusionroute`` with these arguments in this process, which dies just before its change number ``at`` of a place.

    A change is whatever Python writes, makes, renames or deletes in ``run`` under a name that begins with ``place``, or
    a temporary one of it. All names are written to ``<run>.changed``, what is printed to ``<run>.log``.
    """
    sys.stdout = sys.stderr = run.with_suffix(".log").open("w", buffering=1)
    changed = run.with_suffix(".changed").open("w", buffering=1)
    prefix, count = f"{run}{os.sep}", 0

    def watch(event: str, values: tuple[Any, ...]) -> None:
        nonlocal count
        is_written = event == "open" and "w" in (values[1] or "")
        if not (is_written or event in CHANGES) or not str(values[0]).startswith(prefix):
            return
        name = str(values[0]).removeprefix(prefix).lstrip(".")
        changed.write(f"{name}\n")
        count += name.startswith(place)
        if count == at > 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    os.environ.update(environment or {})
    gc.freeze()  # collecting garbage after each expert is slow through all that the libraries hold
    sys.argv[1:] = arguments
    main()
