"""The demo, small enough for a test: what it trains, what it finds, what it writes and what it shows."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fusionroute import Team
from fusionroute.errors import OutputExistsError
from fusionroute.zoo.contest import BEFORE_CDPO, FUSED, task_kinds
from fusionroute.zoo.demo import DemoResult, run_demo
from fusionroute.zoo.tasks import TASKS

STAGE = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 16}
SMALL = {"per_task": 8, "preference_per_task": 4, "test_count": 4, "sft": STAGE, "cdpo": STAGE}


def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def shown(where: Console) -> str:
    assert isinstance(where.file, io.StringIO)
    return where.file.getvalue()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, str]:
    where = console()
    return run_demo(tmp_path_factory.mktemp("runs") / "demo", console=where, **SMALL), shown(where)


def test_every_method_answers_every_task(demo: tuple[DemoResult, str]) -> None:
    correct = demo[0].comparison.correct
    assert list(correct) == [
        "math alone",
        "code alone",
        "chat alone",
        "router alone",
        "routing only",
        BEFORE_CDPO,
        FUSED,
    ]
    assert all(
        {task: len(verdicts) for task, verdicts in row.items()} == dict.fromkeys(TASKS, 4) for row in correct.values()
    )


def test_it_leaves_a_team(demo: tuple[DemoResult, str]) -> None:
    (completion,) = Team.from_pretrained(demo[0].folder).generate(["Say tree twice."], max_new_tokens=4)
    assert completion.token_ids


def test_the_record_says_what_was_measured_on_what(demo: tuple[DemoResult, str]) -> None:
    record = json.loads((demo[0].folder / "results.json").read_text())
    assert {"versions", "machine", "seed", "per_task", "preference_per_task", "test_count"} | {
        "seconds",
        "accuracy",
        "groups",
    } == record.keys()
    assert record["accuracy"][FUSED]["average"]["n"] == 4 * len(TASKS)
    assert {"value", "low", "high", "n", "stderr"} == record["accuracy"]["math alone"]["sums"].keys()
    assert record["groups"].keys() == task_kinds().keys()


def test_it_shows_a_table_samples_and_what_to_type_next(demo: tuple[DemoResult, str]) -> None:
    result, text = demo
    for expected in ("4 unseen questions", "fused − router alone", "reference", "✗ ", f"chat {result.folder}", "Took "):
        assert expected in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines()[:-6])) <= 100  # the last ones hold a path


def test_a_finished_demo_is_not_trained_again(demo: tuple[DemoResult, str]) -> None:
    where, before = console(), (demo[0].folder / "team.json").stat().st_mtime_ns
    again = run_demo(demo[0].folder, console=where, **SMALL)
    assert "trained already" in shown(where)
    assert (demo[0].folder / "team.json").stat().st_mtime_ns == before
    assert again.comparison.correct == demo[0].comparison.correct


def test_another_demos_folder_is_left_alone(demo: tuple[DemoResult, str]) -> None:
    with pytest.raises(OutputExistsError, match="--overwrite"):
        run_demo(demo[0].folder, console=console(), **SMALL | {"per_task": 9})
    with pytest.raises(OutputExistsError, match="seed"):
        run_demo(demo[0].folder, console=console(), seed=1, **SMALL)


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError):
            run_demo(tmp_path, console=console(), overwrite=overwrite, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_kinds_of_tasks_cover_all_of_them() -> None:
    kinds = task_kinds()
    assert sorted(kinds["one_expert"] + kinds["mixed"] + kinds["unknown"]) == sorted(TASKS)
