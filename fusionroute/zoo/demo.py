"""The demo: train a router over the shipped experts, compare on unseen examples, show who wrote what."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fusionroute.environment import machine, versions
from fusionroute.evaluation.comparison import Comparison
from fusionroute.models.team import TeamModels
from fusionroute.output import write_json
from fusionroute.terminal.progress import RichProgress
from fusionroute.training.run_folder import PAIRS_FILE, SFT_FOLDER
from fusionroute.zoo.contest import FUSED, compare, summary, unseen
from fusionroute.zoo.demo_report import closing, opening, show
from fusionroute.zoo.team import CDPO, EXPERTS, PER_TASK, PREFERENCE_PER_TASK, SFT, TRAIN_FILE, train_team

TEST_COUNT = 100
RESULTS = "results.json"


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
    preference_per_task: int = PREFERENCE_PER_TASK,
    test_count: int = TEST_COUNT,
    sft: Mapping[str, Any] = SFT,
    cdpo: Mapping[str, Any] = CDPO,
    console: Console,
    overwrite: bool = False,
) -> DemoResult:
    """Train by the whole recipe, compare, show; everything lands in ``output``, which is a team folder afterwards.

    A finished demo with the same settings is not trained again unless ``overwrite`` says so.

    Raises:
        OutputExistsError: ``output`` holds something else.
    """
    began = time.monotonic()
    console.print(opening(EXPERTS, per_task), markup=False)
    with RichProgress(console) as progress, one_thread():
        trained = train_team(
            output,
            seed=seed,
            per_task=per_task,
            preference_per_task=preference_per_task,
            sft=sft,
            cdpo=cdpo,
            progress=progress,
            overwrite=overwrite,
        )
        if not trained:
            console.print(
                f"{output} is trained already with these settings (--overwrite trains it again)", markup=False
            )
        ready = time.monotonic()
        team, test = TeamModels.from_pretrained(output, device="cpu"), unseen(test_count)
        before = TeamModels.from_pretrained(output / SFT_FOLDER, device="cpu")
        comparison, answers = compare(team, test, progress, before=before)
    ended = time.monotonic()
    seconds = {"training": ready - began} if trained else {}
    seconds |= {"comparison": ended - ready, "total": ended - began}
    result = DemoResult(output, comparison, seconds)
    _record(result, seed=seed, per_task=per_task, preference_per_task=preference_per_task, test_count=test_count)
    show(console, comparison, team, test, answers[FUSED])
    files = {
        TRAIN_FILE: "what the router learned from",
        PAIRS_FILE: "the team's own mistakes, which it learned from next",
        RESULTS: "every number, with intervals and versions",
    }
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


def _record(result: DemoResult, **asked: int) -> None:
    record = {
        "versions": versions(),
        "machine": machine(),
        **asked,
        "seconds": {stage: round(seconds, 1) for stage, seconds in result.seconds.items()},
        **summary(result.comparison),
    }
    write_json(result.folder / RESULTS, record)
