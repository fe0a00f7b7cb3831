"""``fusionroute lm-eval``: lm-eval's own command, in this process, on a team of ours."""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from typer.testing import CliRunner

import tiny
from fusionroute import Team
from fusionroute.cli import app

TASK = """\
task: writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {documents}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["x"], max_gen_toks: 9, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
QUESTIONS = ["one", "two and two"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["lm-eval", *(str(argument) for argument in arguments)])


@pytest.fixture(autouse=True)
def only_the_task_of_these_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the thousands of tasks that lm-eval brings along takes ten seconds."""
    without_others = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", without_others)


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval asks for cuda:0 unless told otherwise; without one, a team is to run all the same."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)


@pytest.fixture(scope="module")
def team_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teams") / "team"
    tiny.team(prompt="chat_template").save_pretrained(folder, save_experts=True)
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    documents = folder / "documents.jsonl"
    documents.write_text("".join(f"{json.dumps({'question': text, 'answer': text})}\n" for text in QUESTIONS))
    path = folder / "writing.yaml"
    path.write_text(TASK.format(documents=documents))
    return path


def test_lm_eval_runs_with_our_model(team_folder: Path, task: Path, tmp_path: Path) -> None:
    before = list(sys.argv)
    result = run(
        "--model", "fusionroute", "--model_args", f"team={team_folder},complement=false,max_batch=2", "--tasks", task,
        "--apply_chat_template", "--log_samples", "--output_path", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "exact_match" in result.stdout  # lm-eval's table
    assert sys.argv == before
    (samples,) = tmp_path.rglob("samples_writing_*.jsonl")
    records = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda each: each["doc_id"])
    expected = Team.from_pretrained(team_folder).generate(QUESTIONS, complement=False, max_new_tokens=9, stop="x")
    assert [record["resps"] for record in records] == [[[completion.text]] for completion in expected]
    (results,) = tmp_path.rglob("results_*.json")
    assert json.loads(results.read_text())["config"]["model_args"]["complement"] is False


def test_help_and_mistakes_are_lm_evals_own() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "usage: lm-eval" in result.output
    result = run("run", "--model", "fusionroute", "--no-such-option", "1", "--tasks", "writing")
    assert result.exit_code == 2
    assert "unrecognized arguments: --no-such-option" in result.output


def test_a_mistake_in_our_arguments_is_one_line(team_folder: Path, task: Path) -> None:
    result = run("--model", "fusionroute", "--model_args", f"team={team_folder},complemnt=false", "--tasks", task)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: model_args: unknown option 'complemnt'; did you mean 'complement'?")


def test_without_lm_eval_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("lm_eval", "fusionroute.evaluation.harness"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = run("--help")
    assert result.exit_code == 2
    assert result.stderr == "error: benchmarks need lm-eval: pip install 'fusionroute[eval]'\n"
