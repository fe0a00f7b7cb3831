"""``fusionroute generate`` and ``chat`` with an ensemble file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

import fusionroute as fr
import tiny_ensemble
from fusionroute.config import GenerationSettings
from fusionroute.engine.sequence import ENSEMBLED
from test_cli import complaint, run, terminal, visible

PROMPTS = ["hello", "a b c"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    models = tiny_ensemble.save(folder, ("bytes", "pieces"))
    return tiny_ensemble.write_file(folder, models, device="cpu", weights={"bytes": 1, "pieces": 1})


def answers(file: Path, *prompts: Any, **options: Any) -> list[fr.Completion]:
    return fr.Ensemble.from_file(file, changes=options).generate(prompts, max_new_tokens=8)


def cost(file: Path, *prompts: str) -> dict[str, Any]:
    """What these answers take, asked of the method itself."""
    ensemble = fr.Ensemble.from_file(file)
    engine = ensemble.engine()
    ids = [ensemble.prompt_format.encode(prompt) for prompt in prompts]
    engine.generate(ids, GenerationSettings(max_new_tokens=8), None, prompts)
    read = {runner.name: runner.tokens_read for runner in engine.method.runners}
    passes = {runner.name: runner.passes for runner in engine.method.runners}
    return {"drafted": engine.method.drafted, "kept": engine.method.kept, "tokens_read": read, "passes": passes}


def test_json_tells_the_verdict_on_every_token(file: Path) -> None:
    result = run("generate", file, *PROMPTS, "--max-new-tokens", 8, "--json")
    assert result.exit_code == 0, result.output
    expected = cost(file, *PROMPTS)
    assert set(expected["tokens_read"]) == {"bytes", "pieces"}
    for line, answer in zip(result.stdout.splitlines(), answers(file, *PROMPTS), strict=True):
        record = json.loads(line)
        assert record["cost"] == {"answers": 2, **expected}
        assert (record["text"], record["token_ids"]) == (answer.text, answer.token_ids)
        assert record["trace"] == json.loads(json.dumps([asdict(token) for token in answer.trace]))
        assert all(token["verdict"] and len(token["support"]) in (0, 2) for token in record["trace"])


def test_piped_output_is_the_plain_text(file: Path) -> None:
    result = run("generate", file, *PROMPTS, "--max-new-tokens", 8)
    assert result.stdout == "".join(f"{answer.text}\n" for answer in answers(file, *PROMPTS))


def test_set_changes_the_file_for_this_call(file: Path) -> None:
    result = run(
        "generate", file, "hello", "--max-new-tokens", 8, "--json", "--set", "host=gac", "--set", "draft_length=2",
        "--set", "weights.pieces=5", "--set", "drafter=pieces",
    )  # fmt: skip
    weights = {"bytes": 1, "pieces": 5}
    (expected,) = answers(file, "hello", host="gac", draft_length=2, weights=weights, drafter="pieces")
    assert json.loads(result.stdout)["token_ids"] == expected.token_ids


@pytest.mark.parametrize("count", [1, 2])  # one is streamed, several are not
def test_a_terminal_shows_who_wrote_and_how_often_they_were_asked(
    file: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal(monkeypatch)
    assert run("generate", file, *PROMPTS[:count], "--max-new-tokens", 8).exit_code == 0
    trace = [record for answer in answers(file, *PROMPTS[:count]) for record in answer.trace]
    asked = sum(record.verdict in ENSEMBLED for record in trace)
    shown = Text.from_ansi(screen.getvalue()).plain
    assert f"ensembled {asked} of {len(trace)} tokens" in shown
    spent = cost(file, *PROMPTS[:count])
    acceptance = f"{100 * spent['kept'] / spent['drafted']:.1f} %"
    assert f"kept {spent['kept']} of {spent['drafted']} drafted tokens (acceptance {acceptance})" in shown
    assert f"bytes {spent['tokens_read']['bytes'] / len(trace):.2f}, pieces" in shown


def test_chat_explains_the_marks_of_an_ensemble_and_counts_each_answer_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal(monkeypatch)
    assert run("chat", file, "--max-new-tokens", 8, piped="hello\n/reset\nhello\n/exit\n").exit_code == 0
    shown = Text.from_ansi(screen.getvalue()).plain
    assert "bold: the models were asked   bold and underlined: they wrote something else" in shown
    assert "the expert alone" not in shown
    drafted = cost(file, "hello")["drafted"]
    assert shown.count(f"of {drafted} drafted tokens") == 2  # not the sum of both


def test_chat_keeps_the_history(file: Path) -> None:
    result = run("chat", file, "--max-new-tokens", 5, "--set", "host=gac", piped="hi\nso\n/exit\n")
    ensemble = fr.Ensemble.from_file(file, changes={"host": "gac"})
    first = ensemble.generate(["hi"], max_new_tokens=5)[0].text
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": first}]
    second = ensemble.generate([[*messages, {"role": "user", "content": "so"}]], max_new_tokens=5)[0].text
    assert result.stdout == "".join(f"{visible(text)}\n" for text in (first, second))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--no-complement",), ("--no-complement", "no router")),
        (("--set", "hots=gac"), ("ensemble.yaml", "did you mean 'host'")),
        (("--set", "draft_length=0"), ("draft_length", "got 0")),
        (("--set", "drafter=byte"), ("drafter", "did you mean 'bytes'")),
        (("--set", "drafter=null"), ("drafter is missing", "fusionroute calibrate")),
        (("--set", "weights={bytes: 0, pieces: 0}"), ("weights", "above 0")),
        (("--set", "gate=0.4"), ("gate is of host gac",)),
        (("--set", "models={bytes: x/a, other: x/b}"), ("weights: unknown option 'pieces'",)),
        (("--set", "models.pieces=null"), ("'pieces' is None", "hub id")),
        (("--set", "models.bytes.device=cuda:77"), ("'cuda:77'", "there is cpu")),
        (("--set", "device=tpu", "--set", "models.bytes.device=tpu"), ("no 'tpu' on this machine",)),
        (("--set", "path=x"), ("unknown option 'path'",)),
        (("--set", "sharpening=off"), ("sharpening", "YAML reads off", "none, prefix")),
        (("--set", "weights.bytes=true"), ("weights.bytes", "a number is needed", "got True")),
        (("--set", "models.third=/no/such/model"), ("'third' has none",)),
        (("--set", "models.pieces=/no/such/model"), ("/no/such/model",)),
        (("--set", "host"), ("KEY=VALUE",)),
        (("--temperature", "0.5"), ("--do-sample",)),
    ],
)
def test_what_is_wrong_is_one_line(file: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    line = complaint("generate", file, "hi", *arguments)
    assert all(word in line for word in words), line


def test_files_that_are_no_ensemble(tmp_path: Path) -> None:
    assert "no settings file" in complaint("generate", tmp_path / "none.yaml", "hi")
    team = tmp_path / "team.yaml"
    team.write_text("experts: {math: a/b}\nrouter: {init: a/b}\ndata: {train: a}\n")
    assert "train that team first and give its folder" in complaint("generate", team, "hi")
    assert "--set host=gac: it sets an option of an ensemble file" in complaint(
        "generate", tmp_path, "hi", "--set", "host=gac"
    )


def test_chat_needs_a_format_that_renders_messages(file: Path) -> None:
    assert "the ensemble file to chat_template" in complaint("chat", file, "--set", "prompt=null")


def test_a_whole_option_is_replaced_and_a_dotted_one_changed(file: Path, tmp_path: Path) -> None:
    three = tiny_ensemble.write_file(
        tmp_path, {"bytes": "/no/such", "pieces": str(file.parent / "pieces"), "third": "/no/such"}, device="meta"
    )
    models = f"models={{bytes: {file.parent / 'bytes'}, pieces: {file.parent / 'pieces'}}}"
    result = run(
        "generate", three, "hello", "--max-new-tokens", 8, "--set", models, "--set", "models.pieces.device=cpu",
        "--set", "device=cpu", "--set", "threshold=null",
    )  # fmt: skip
    assert result.stdout == f"{answers(file, 'hello')[0].text}\n", result.output
