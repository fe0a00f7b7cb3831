"""The demo: train a router over the shipped experts, compare on unseen examples, show who wrote what."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fusionroute.environment import machine, versions
from fusionroute.errors import OutputExistsError
from fusionroute.evaluation.comparison import Comparison
from fusionroute.models.team import TeamModels
from fusionroute.output import write_json, write_text
from fusionroute.terminal import RichProgress
from fusionroute.training.run import train
from fusionroute.training.run_folder import clear_run, is_finished, open_run
from fusionroute.training.settings import TrainSettings
from fusionroute.zoo.build import weights_folder
from fusionroute.zoo.contest import FUSED, compare, summary, unseen
from fusionroute.zoo.demo_report import closing, opening, show
from fusionroute.zoo.tasks import TASKS, Example, examples

# Everything the demo's numbers depend on, beside the seed and the counts of examples.
EXPERTS = ("math", "code", "chat")
ROUTER_START = "chat"  # the paper starts from the instruction-following expert
PROMPT = "chat_template"
SCORE: dict[str, Any] = {"batch_size": 64}
SFT: dict[str, Any] = {"learning_rate": 2e-3, "batch_size": 16, "epochs": 5}
PER_TASK, TEST_COUNT = 400, 100

DATA, RESULTS = "train.jsonl", "results.json"


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        folder: the trained team.
        comparison: every method's verdicts on the test examples.
        seconds: how long each stage took; no "training" if the team was there already.
    """

    folder: Path
    comparison: Comparison
    seconds: dict[str, float]


def run_demo(
    output: Path,
    *,
    seed: int = 0,
    per_task: int = PER_TASK,
    test_count: int = TEST_COUNT,
    sft: Mapping[str, Any] = SFT,
    console: Console,
    overwrite: bool = False,
) -> DemoResult:
    """Train, compare, show; everything lands in ``output``, which is a team folder afterwards.

    A finished demo with the same settings is not trained again unless ``overwrite`` says so.

    Raises:
        OutputExistsError: ``output`` holds something else.
    """
    began = time.monotonic()
    console.print(opening(EXPERTS, per_task), markup=False)
    with RichProgress(console) as progress, one_thread():
        trained = train_team(output, seed=seed, per_task=per_task, sft=sft, progress=progress, overwrite=overwrite)
        if not trained:
            console.print(f"{output} is trained already with these settings (--fresh trains it again)", markup=False)
        ready = time.monotonic()
        team, test = TeamModels.from_pretrained(output), unseen(test_count)
        comparison, answers = compare(team, test, progress)
    ended = time.monotonic()
    seconds = {"training": ready - began} if trained else {}
    seconds |= {"comparison": ended - ready, "total": ended - began}
    result = DemoResult(output, comparison, seconds)
    _record(result, seed=seed, per_task=per_task, test_count=test_count)
    show(console, comparison, team, test, answers[FUSED])
    files = {DATA: "what the router learned from", RESULTS: "every number, with intervals and versions"}
    console.print(closing(output, seconds, files), markup=False, soft_wrap=True)
    return result


@contextmanager
def one_thread() -> Iterator[None]:
    """For models this small a second thread brings little, on a busy machine it costs much; and numbers that do not
    depend on the number of cores can be compared.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_team(
    output: Path,
    *,
    seed: int,
    per_task: int,
    sft: Mapping[str, Any] = SFT,
    progress: RichProgress,
    overwrite: bool = False,
) -> bool:
    """Train a router on ``per_task`` examples of every task; False if ``output`` holds that very team already.

    Raises:
        OutputExistsError: ``output`` holds something else, or was trained on other examples.
    """
    settings = demo_settings(output / DATA, seed=seed, sft=sft)
    if overwrite:
        _clear(output)
    open_run(output, settings)
    _write_data(output / DATA, [example for task in TASKS for example in examples(task, "train", per_task, seed)])
    if is_finished(output):
        return False
    train(settings, output, progress=progress)
    return True


def _clear(output: Path) -> None:
    clear_run(output)  # refuses a folder that no run has written
    for name in (DATA, RESULTS):
        (output / name).unlink(missing_ok=True)


def _write_data(path: Path, drawn: Sequence[Example]) -> None:
    rows = [{"prompt": example.prompt, "completion": example.answer} for example in drawn]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.is_file() and path.read_text(encoding="utf-8") != lines:
        raise OutputExistsError(
            f"{path.parent} was trained on other examples; choose another output folder, or start afresh (--fresh)"
        )
    write_text(path, lines)


def demo_settings(data: Path, *, seed: int, sft: Mapping[str, Any] = SFT) -> TrainSettings:
    """The team file of the demo, as `fusionroute train` would read it."""
    return TrainSettings.parse(
        {
            "experts": {name: str(weights_folder(name)) for name in EXPERTS},
            "router": {"init": str(weights_folder(ROUTER_START))},
            "prompt": PROMPT,
            "data": {"train": str(data.resolve())},
            "score": SCORE,
            "sft": dict(sft),
            "seed": seed,
        }
    )


def _record(result: DemoResult, **asked: int) -> None:
    record = {
        "versions": versions(),
        "machine": machine(),
        **asked,
        "seconds": {stage: round(seconds, 1) for stage, seconds in result.seconds.items()},
        **summary(result.comparison),
    }
    write_json(result.folder / RESULTS, record)
