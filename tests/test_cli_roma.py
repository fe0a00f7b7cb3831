"""``fusionroute roma`` in this process, through typer's runner, over tiny models."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import tiny
from fusionroute.cli import app
from fusionroute.evaluation.statistics import wilson
from fusionroute.models.gates import Gates
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.asking import ask
from fusionroute.moe.optimise import Descent
from fusionroute.moe.oracle import mislabelled, oracle
from fusionroute.moe.pathways.pathways import load_pathways
from fusionroute.moe.questions.questions import encode_questions, read_questions
from fusionroute.moe.roma.roma import train_roma
from tiny_roma import as_values, save_model, tensors, world


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["roma", *map(str, arguments)])


def complaint(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return str(line)


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    world(tmp_path)
    path = tmp_path / "roma.yaml"
    path.write_text(yaml.safe_dump(as_values(tmp_path)))
    return path


def test_train_and_apply_do_what_the_library_does(settings: Path, tmp_path: Path) -> None:
    expected = train_roma(world(tmp_path, weight=2.0), tmp_path / "library")
    result = run("train", settings, "--output", tmp_path / "run", "--set", "weight=2")
    assert result.exit_code == 0, result.output
    made, base = tmp_path / "run" / "model", tmp_path / "base"
    asking = f"QUESTIONS.jsonl --reference-base {base}\n"
    assert result.stdout.endswith(f"{made} is ready\nnext: fusionroute roma evaluate {made} {asking}")
    result = run("train", settings, "--output", tmp_path / "delta", "--delta", "--set", "weight=2")
    delta = tmp_path / "delta" / "router_delta.safetensors"
    assert f"{delta} is ready\nnext: fusionroute roma apply {base} {delta} --output …\n" in result.stdout
    assert not (tmp_path / "delta" / "model").exists()
    result = run("apply", tmp_path / "base", tmp_path / "delta", "--output", tmp_path / "applied")
    applied = tmp_path / "applied"
    assert result.stdout == f"{applied} is ready\nnext: fusionroute roma evaluate {applied} {asking}"
    for folder in (made, applied):
        assert (folder / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    again = run("train", settings, "--output", tmp_path / "run", "--set", "weight=2")
    assert "already finished" in " ".join(again.stdout.split())


def test_evaluate_counts_what_the_library_counts(tmp_path: Path) -> None:
    world(tmp_path)
    save_model(tmp_path / "other", seed=5)
    questions = tmp_path / "train.jsonl"
    correct = {}
    for name in ("base", "other"):
        encoded = encode_questions(read_questions(questions), PromptFormat(load_tokenizer(tmp_path / name)))
        correct[name] = ask(Gates(load_model(str(tmp_path / name), device="cpu"), 1), encoded).correct
    command = ("evaluate", tmp_path / "other", questions, "--reference-base", tmp_path / "base", "--device", "cpu")
    result = run(*command, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    for name, found in (("other", said), ("base", said["reference"])):
        estimate = wilson(int(correct[name].sum()), 24)
        assert found["overall"] == pytest.approx(vars(estimate))
        assert sum(round(task["value"] * task["n"]) for task in found["tasks"].values()) == correct[name].sum()
        assert found["mean_of_tasks"]["value"] == pytest.approx(
            sum(task["value"] for task in found["tasks"].values()) / 2
        )
    difference = said["mean_of_tasks"]["value"] - said["reference"]["mean_of_tasks"]["value"]
    assert said["difference"]["value"] == pytest.approx(difference)
    shown = run(*command)
    assert f"{100 * said['overall']['value']:.1f} (" in shown.stdout
    assert f"mean of tasks: {100 * difference:+.1f} points" in shown.stdout
    alone = json.loads(run("evaluate", tmp_path / "base", questions, "--json", "--limit", 7).stdout)
    assert alone["overall"]["n"] == 7
    assert alone["prompt"] is None
    assert "reference" not in alone


def losses(model: Path, questions: Path, prompt: str | None) -> list[float]:
    encoded = encode_questions(read_questions(questions), PromptFormat(load_tokenizer(model), prompt))
    said: list[float] = ask(Gates(load_model(str(model), device="cpu"), 1), encoded).loss.tolist()
    return said


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """The losses of the right answers, of every time that a command asks a model all questions."""
    seen: list[list[float]] = []

    def noting(*arguments: Any, **options: Any) -> Any:
        said = ask(*arguments, **options)
        seen.append(said.loss.tolist())
        return said

    monkeypatch.setattr("fusionroute.moe.asking.ask", noting)
    return seen


def test_questions_are_put_as_prompt_says(tmp_path: Path, asked: list[list[float]]) -> None:
    world(tmp_path)
    base, questions = tmp_path / "base", tmp_path / "dev.jsonl"
    for given, name in (("chat_template", "chat_template"), ("text", None)):
        command = ("evaluate", base, questions, "--device", "cpu", "--prompt", given)
        said = json.loads(run(*command, "--json").stdout)
        assert said["prompt"] == name
        assert asked.pop() == pytest.approx(losses(base, questions, name), rel=1e-5)
        assert "questions were put" not in run(*command).stdout
        asked.clear()
    assert losses(base, questions, None) != pytest.approx(losses(base, questions, "chat_template"), rel=1e-3)
    result = run("evaluate", base, questions, "--device", "cpu")
    assert "questions were put as plain text; the tokenizer has a chat template, see --prompt" in result.stdout
    assert asked.pop() == pytest.approx(losses(base, questions, None), rel=1e-5)
    assert "did you mean 'alpaca'" in complaint("evaluate", base, questions, "--prompt", "alpacka")


def test_a_run_s_model_is_asked_as_the_run_was(tmp_path: Path, asked: list[list[float]]) -> None:
    made = train_roma(world(tmp_path, prompt="chat_template"), tmp_path / "run")
    base, questions = tmp_path / "base", tmp_path / "dev.jsonl"
    asked.clear()
    command = ("evaluate", made, questions, "--device", "cpu", "--reference-base", base)
    said = json.loads(run(*command, "--json").stdout)
    assert said["prompt"] == "chat_template"
    for name, found in zip((made, base), asked, strict=True):  # the reference too
        assert found == pytest.approx(losses(name, questions, "chat_template"), rel=1e-5)
    settings = tmp_path / "run" / "settings.yaml"
    for shown in (
        run(*command),
        run("oracle", made, questions, "--steps", 1, "--layers", 1, "--device", "cpu"),
        run("record", made, questions, "--output", tmp_path / "recorded", "--layers", 1, "--device", "cpu"),
    ):
        assert f"questions were put as chat_template, as {settings} says" in shown.stdout
    assert load_pathways(tmp_path / "recorded").settings["prompt"] == "chat_template"
    assert json.loads(run(*command, "--json", "--prompt", "text").stdout)["prompt"] is None
    settings.write_text("something: else\n")
    assert json.loads(run(*command, "--json").stdout)["prompt"] is None


def test_one_model_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world(tmp_path)
    save_model(tmp_path / "other", seed=5)
    loaded: list[weakref.ref[Any]] = []

    def noting(*arguments: Any, **options: Any) -> Any:
        assert not [each for each in loaded if each() is not None], "the one before is still there"
        live = load_model(*arguments, **options)
        loaded.append(weakref.ref(live))
        return live

    monkeypatch.setattr("fusionroute.models.loading.load_model", noting)
    command = ("evaluate", tmp_path / "base", tmp_path / "dev.jsonl", "--reference-base", tmp_path / "other")
    result = run(*command, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert len(loaded) == 2


def test_oracle_says_how_many_steps_and_what_wrong_labels_give(tmp_path: Path) -> None:
    world(tmp_path)
    questions = tmp_path / "dev.jsonl"
    options = ("--layers", 2, "--steps", 4, "--learning-rate", 0.1)
    result = run("oracle", tmp_path / "base", questions, *options, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    encoded = encode_questions(read_questions(questions), PromptFormat(load_tokenizer(tmp_path / "base")))
    found = oracle(Gates(load_model(str(tmp_path / "base"), device="cpu"), 2), encoded, Descent(4, 0.1))
    assert (said["steps"], said["seed"], said["prompt"]) == (4, 0, None)
    assert said["descent"] == {"steps": 4, "learning_rate": 0.1, "final": 1e-5, "core": 20}
    aims = ask(Gates(load_model(str(tmp_path / "base"), device="cpu"), 2), mislabelled(encoded, 0)).correct
    assert said["wrong_answers_under_own_routing"]["value"] == pytest.approx(aims.float().mean().item())
    assert said["own_routing"]["value"] == found.before.correct.float().mean().item()
    assert said["oracle"]["value"] == pytest.approx(found.after.correct.float().mean().item())
    assert said["oracle"]["value"] >= said["own_routing"]["value"]
    reached, right = said["told_wrong_answers_reaches_them"]["value"], said["told_wrong_answers_still_right"]["value"]
    assert reached + right == pytest.approx(1)  # of two options one
    shown = run("oracle", tmp_path / "base", questions, *options).stdout
    assert "n = 10; 4 steps of descent, the first at rate 0.1, on the routing of the last prompt token in 2 l" in shown
    assert "no bound on gates that are trained" in shown
    assert f"wrong answers under own routing  {100 * aims.float().mean().item():.1f} (" in shown


def test_layers_are_a_number_a_list_or_all(tmp_path: Path) -> None:
    world(tmp_path)
    command = ("oracle", tmp_path / "base", tmp_path / "dev.jsonl", "--steps", 1, "--limit", 2, "--json")
    for given, places in (("2", [2, 3]), ("0,2", [0, 2]), ("-1, 0", [0, 3]), ("1,", [1]), ("all", [0, 1, 2, 3])):
        said = json.loads(run(*command, f"--layers={given}").stdout)
        assert said["layers"] == [f"model.layers.{place}.mlp.gate" for place in places]
    assert "places run from -4 to 3" in complaint(*command, "--layers", "0,4")
    assert "list of their places; got '0,x'" in complaint(*command, "--layers", "0,x")


def test_sweep_shows_every_point(settings: Path, tmp_path: Path) -> None:
    result = run("sweep", settings, "--output", tmp_path / "sweep", "--delta", "--set", "sweep=[3, 1]", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said.pop("prompt") is None
    assert [point["weight"] for point in said["points"]] == [0, 1, 3]
    written = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert {name: written[name] for name in said} == said
    shown = run("sweep", settings, "--output", tmp_path / "sweep", "--delta", "--set", "sweep=[3, 1]").stdout
    assert all(f"\n{name}" in shown.replace(" ", "") for name in ("untouched", "0", "1", "3"))
    assert f"λ = {said['chosen']:g} was chosen" in shown
    assert all(f" {100 * point['mean_of_tasks']:.1f} " in shown for point in (said["base"], *said["points"]))
    assert len(tensors(tmp_path / "sweep")) == 2


def test_what_is_wrong_is_one_line(settings: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert "did you mean 'weight'" in complaint("train", settings, "--output", output, "--set", "wieght=2")
    assert "no settings file" in complaint("train", tmp_path / "none.yaml", "--output", output)
    assert "the model has 4" in complaint("train", settings, "--output", output, "--set", "layers=5")
    assert "no router delta at" in complaint("apply", tmp_path / "base", tmp_path, "--output", tmp_path / "applied")
    assert "no file of questions" in complaint("evaluate", tmp_path / "base", tmp_path / "none.jsonl")
    assert "'all'" in complaint("oracle", tmp_path / "base", tmp_path / "dev.jsonl", "--layers", "most")
    assert "name data.dev" in complaint("sweep", settings, "--output", output, "--set", "data.dev=[]")
    assert not output.exists() or not (output / "checkpoints").exists()


def test_a_dense_model_has_no_routers(tmp_path: Path) -> None:
    world(tmp_path)
    tiny.language_model("llama").save_pretrained(tmp_path / "dense")
    tiny.tokenizer().save_pretrained(tmp_path / "dense")
    assert "no mixture-of-experts layer" in complaint("evaluate", tmp_path / "dense", tmp_path / "dev.jsonl")


def test_record_and_report_make_a_page(tmp_path: Path) -> None:
    world(tmp_path)
    save_model(tmp_path / "other", seed=5)
    for name in ("base", "other"):
        command = ("record", tmp_path / name, tmp_path / "train.jsonl", "--output", tmp_path / f"{name}-pathways")
        result = run(*command, "--layers", "2", "--device", "cpu", "--limit", 20)
        assert result.exit_code == 0, result.output
        assert f"pathways of 20 questions\n{command[-1]} is ready\nnext: " in result.stdout
    page = tmp_path / "routing.html"
    result = run("report", tmp_path / "base-pathways", tmp_path / "other-pathways", "--output", page)
    assert result.exit_code == 0, result.output
    assert "Routing before and after" in page.read_text()
    assert "the embeddings (self)" in page.read_text()
    assert 'id="methods"' not in page.read_text()
    told = tmp_path / "results.json"
    both = (tmp_path / "base-pathways", tmp_path / "other-pathways", "--output")
    pair = (*both, tmp_path / "methods.html", "--results", told)
    told.write_text('{"base": {"all": 0.5}, "RoMA": {"all": {"value": 0.625, "low": 0.6, "high": 0.65}}}')
    assert run("report", *pair).exit_code == 0
    assert "62.5" in pair[3].read_text().partition('id="methods"')[2]
    for text, said in (
        ("{", "not valid JSON"),
        ("[]", "no methods"),
        ('{"RoMA": 0.6}', "no columns"),
        ('{"RoMA": {"arc": 58}}', "no share of 0 to 1"),
    ):
        told.write_text(text)
        assert said in complaint("report", *pair, "--overwrite")
    assert "no results can be read" in complaint("report", *pair[:5], tmp_path / "none.json", "--overwrite")
    assert "exists" in complaint("report", *both, page)
    assert "holds" in complaint("report", tmp_path / "base", *both[1:], tmp_path / "x.html")
