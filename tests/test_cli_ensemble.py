"""``fusionroute generate`` and ``chat`` with an ensemble file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

import fusionroute as fr
import tiny_ensemble
from fusionroute.engine.sequence import ENSEMBLED
from test_cli import complaint, run, terminal, visible

PROMPTS = ["hello", "a b c"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    models = tiny_ensemble.save(folder, ("bytes", "pieces"))
    return tiny_ensemble.write_file(folder, models, device="cpu", weights={"bytes": 1, "pieces": 1})


def answers(file: Path, *prompts: Any, **options: Any) -> list[fr.Completion]:
    return fr.Ensemble.from_file(file, **options).generate(prompts, max_new_tokens=8)


def test_json_tells_the_verdict_on_every_token(file: Path) -> None:
    result = run("generate", file, *PROMPTS, "--max-new-tokens", 8, "--json")
    assert result.exit_code == 0, result.output
    for line, answer in zip(result.stdout.splitlines(), answers(file, *PROMPTS), strict=True):
        record = json.loads(line)
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


def test_chat_keeps_the_history(file: Path) -> None:
    result = run("chat", file, "--max-new-tokens", 5, "--set", "host=gac", piped="hi\nso\n/exit\n")
    ensemble = fr.Ensemble.from_file(file, host="gac")
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
        (("--set", "models.third=/no/such/model"), ("'third' has none",)),
        (("--set", "models.pieces=/no/such/model"), ("/no/such/model",)),
        (("--set", "host"), ("KEY=VALUE",)),
        (("--temperature", "0.5"), ("--sample",)),
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
