"""The command line in this process through typer's runner; help and env also as a user starts them."""

import io
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

import fusionroute.cli.console
import tiny
from fusionroute import Completion, Team
from fusionroute.cli import app
from fusionroute.cli.overrides import as_changes, with_overrides
from fusionroute.cli.prompts import read_prompts
from fusionroute.cli.train import after
from fusionroute.terminal.tokens import expert_styles
from fusionroute.training.settings import TrainSettings

PROMPTS = ["hello", "a b c"]
NAMES = ("math", "code", "chat")


@pytest.fixture(scope="module")
def team_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teams") / "team"
    tiny.team(prompt="chat_template").save_pretrained(folder, save_experts=True)
    return folder


@pytest.fixture(scope="module")
def answers(team_folder: Path) -> list[Completion]:
    return Team.from_pretrained(team_folder).generate(PROMPTS, max_new_tokens=12)


def run(*arguments: object, piped: str = "") -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=piped)


def complaint(*arguments: object) -> str:
    """The one line that a wrong command prints."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return str(line)


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fusionroute", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "100"})


# --- generate ---------------------------------------------------------------------------------------------------------


def test_json_is_what_the_library_gives(team_folder: Path, answers: list[Completion]) -> None:
    result = run("generate", team_folder, *PROMPTS, "--max-new-tokens", 12, "--json")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["prompt"] for record in records] == PROMPTS
    for record, answer in zip(records, answers, strict=True):
        assert record["text"] == answer.text
        assert record["token_ids"] == answer.token_ids
        assert record["finish_reason"] == answer.finish_reason
        assert record["trace"] == json.loads(json.dumps([asdict(token) for token in answer.trace]))


def test_piped_output_is_the_plain_text(team_folder: Path, answers: list[Completion]) -> None:
    result = run("generate", team_folder, *PROMPTS, "--max-new-tokens", 12)
    assert result.exit_code == 0
    assert result.stdout == "".join(f"{answer.text}\n" for answer in answers)
    assert "\x1b[" not in result.output


def test_prompts_come_from_a_pipe_or_a_file(team_folder: Path, tmp_path: Path) -> None:
    options = ("--max-new-tokens", 4, "--json")
    texts, chats = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    texts.write_text("hello\n\na b c\n")
    messages = [{"role": "user", "content": "a b c"}]
    chats.write_text(f"{json.dumps({'prompt': 'hello'})}\n{json.dumps({'messages': messages})}\n")
    piped = run("generate", team_folder, *options, piped="hello\na b c\n")
    assert piped.stdout == run("generate", team_folder, "--file", texts, *options).stdout
    from_chats = [
        json.loads(line) for line in run("generate", team_folder, "--file", chats, *options).stdout.splitlines()
    ]
    assert [record["token_ids"] for record in from_chats] == [
        json.loads(line)["token_ids"] for line in piped.stdout.splitlines()
    ]


def test_every_option_arrives(team_folder: Path) -> None:
    options = {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.01,
        "seed": 3,
        "logprobs": 2,
    }
    expected = Team.from_pretrained(team_folder).generate(
        PROMPTS[:1], max_new_tokens=12, complement=False, stop=["zz", "e"], **options
    )[0]
    result = run(
        "generate", team_folder, PROMPTS[0], "--max-new-tokens", 12, "--do-sample", "--temperature", 0.7, "--top-k", 40,
        "--top-p", 0.9, "--min-p", 0.01, "--seed", 3, "--stop", "zz", "--stop", "e", "--logprobs", 2, "--no-complement",
        "--device", "cpu", "--dtype", "float32", "--cache-limit", "64MiB", "--max-batch", 1, "--json",
    )  # fmt: skip
    record = json.loads(result.stdout)
    assert (record["text"], record["token_ids"]) == (expected.text, expected.token_ids)
    assert len(record["trace"][0]["top_logprobs"]) == 2
    assert record["trace"][0]["logprob"] == pytest.approx(expected.trace[0].logprob)


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """From here on commands believe that they print to a terminal with all colours."""
    screen = io.StringIO()

    def stdout() -> Console:
        return Console(file=screen, force_terminal=True, color_system="truecolor", width=100, highlight=False)

    for command in ("generate", "chat"):
        monkeypatch.setattr(sys.modules[f"fusionroute.cli.{command}"], "stdout", stdout)
    return screen


@pytest.mark.parametrize("count", [1, 2])  # one is streamed, several are not
def test_a_terminal_shows_every_experts_colour(
    team_folder: Path, answers: list[Completion], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal(monkeypatch)
    assert run("generate", team_folder, *PROMPTS[:count], "--max-new-tokens", 12).exit_code == 0
    styles = expert_styles(NAMES)
    for record in (record for answer in answers[:count] for record in answer.trace):
        assert str(styles[record.expert].color.triplet.red) in screen.getvalue()
    for name, style in styles.items():
        assert f"{style.render(name)} " in screen.getvalue()  # the legend


def test_chat_keeps_the_history_until_reset(team_folder: Path) -> None:
    result = run("chat", team_folder, "--max-new-tokens", 6, piped="hi\nso\n/reset\nhi\n/what\n/exit\nnever\n")
    team = Team.from_pretrained(team_folder)
    first = team.generate(["hi"], max_new_tokens=6)[0].text
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": first}]
    second = team.generate([[*messages, {"role": "user", "content": "so"}]], max_new_tokens=6)[0].text
    said = [visible(first), visible(second), visible(first), "unknown command /what; there are /reset and /exit"]
    assert result.stdout == "".join(f"{line}\n" for line in said)


def test_a_conversation_that_has_grown_too_long_says_so_and_goes_on(team_folder: Path) -> None:
    result = run("chat", team_folder, "--max-new-tokens", 4, piped=f"{'x' * tiny.CONTEXT}\nhi\n")
    assert result.exit_code == 0
    assert "/reset forgets the conversation" in result.stderr
    expected = Team.from_pretrained(team_folder).generate(["hi"], max_new_tokens=4)[0].text
    assert visible(expected) in result.stdout


def visible(text: str) -> str:
    from fusionroute.terminal.tokens import VISIBLE

    return text.translate(VISIBLE)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_missing_team_is_one_line() -> None:
    assert complaint("generate", "/no/such/team", "hi").startswith("error: no team folder at /no/such/team")


def test_a_misspelt_option_names_the_nearest(team_folder: Path) -> None:
    line = complaint("generate", team_folder, "hi", "--tempratur", "1")
    assert "--tempratur" in line
    assert "--temperature" in line


def test_a_misspelt_command_names_the_nearest() -> None:
    assert "'generate'" in complaint("generat")


@pytest.mark.parametrize("value", ["-1", "hot"])
def test_a_bad_temperature_is_refused_before_the_team_is_loaded(value: str) -> None:
    assert "temperature" in complaint("generate", "/no/such/team", "hi", "--do-sample", "--temperature", value)


def test_an_option_without_effect_is_an_error() -> None:
    assert "--do-sample" in complaint("generate", "/no/such/team", "hi", "--top-p", "0.5")
    assert "--json" in complaint("generate", "/no/such/team", "hi", "--logprobs", "1")


def test_prompts_that_are_not_there(tmp_path: Path) -> None:
    assert "no prompts file" in complaint("generate", "team", "--file", tmp_path / "none.txt")
    assert "holds no prompt" in complaint("generate", "team")
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    assert f"{odd}:2" in complaint("generate", "team", "--file", odd)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_a_file_that_is_not_utf8_names_the_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    assert f"{name}:2 holds the byte 0xff, which is not UTF-8" in complaint("generate", "no/team", "--file", path)


def test_a_piped_byte_that_is_not_utf8_names_the_line() -> None:
    result = CliRunner().invoke(app, ["generate", "no/team"], input=b"a\n\xff\n")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: line 2 of the input holds the byte 0xff")


def test_half_a_character_is_refused_by_its_place(team_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"messages": [{"role": "user", "content": "\\ud83d half"}]}\n')
    assert "prompts.jsonl:2 is no valid text: '\\ud83d' at character 1" in complaint("generate", "-", "--file", path)
    assert "prompt 2 is no valid text: '\\udcff'" in complaint("generate", team_folder, "a", "b\udcff")


def test_only_line_ends_part_prompts(tmp_path: Path) -> None:
    path, lines = tmp_path / "prompts.txt", ["one\u2028still one", "two\x85\x0cstill two"]
    path.write_bytes("\r\n".join([*lines, ""]).encode())
    assert read_prompts(None, path) == lines
    rows = path.with_suffix(".jsonl")
    rows.write_text("".join(json.dumps({"prompt": line}, ensure_ascii=False) + "\n" for line in lines))
    assert read_prompts(None, rows) == lines


def test_chat_needs_a_format_that_renders_messages(tmp_path: Path) -> None:
    tiny.team().save_pretrained(tmp_path / "plain", save_experts=True)
    assert "chat_template" in complaint("chat", tmp_path / "plain")


TEAM_YAML = """
experts: {math: /no/such/model, code: /no/such/model}
router: {init: /no/such/model}
data: {train: train.jsonl}
"""


@pytest.mark.parametrize(
    ("stage", "method", "then"),
    [
        ("score", "fusion_route", "fusionroute sft team.yaml --output out"),
        ("train", "fusion_route", 'fusionroute generate out "…"'),
        ("train", "fine_tuned", "load out/model like any checkpoint"),  # it is no team, and `generate` would refuse it
    ],
)
def test_training_ends_by_saying_what_to_do_next(stage: str, method: str, then: str) -> None:
    settings = TrainSettings.parse(yaml.safe_load(TEAM_YAML) | {"method": method})
    assert after(stage, settings, Path("team.yaml"), Path("out")).startswith(then)


def test_a_misspelt_yaml_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "team.yaml"
    path.write_text(TEAM_YAML + "sft: {learning_rat: 1.0e-4}\n")
    line = complaint("train", path, "--output", tmp_path / "out")
    assert str(path) in line
    assert "'learning_rate'" in line
    assert not (tmp_path / "out").exists()


def test_set_overrides_the_yaml_and_is_as_strict(tmp_path: Path) -> None:
    path = tmp_path / "team.yaml"
    path.write_text(TEAM_YAML)
    train = ("train", path, "--output", tmp_path / "out", "--set")
    assert "'learning_rate'" in complaint(*train, "sft.learning_rat=1e-4")
    assert "sft.epochs" in complaint(*train, "sft.epochs=many")
    assert "KEY=VALUE" in complaint(*train, "sft.epochs")
    assert "data.train" in complaint(*train, "data.train.deeper=1") or "'train'" in complaint(
        *train, "data.train.deeper=1"
    )
    assert "/no/such/model" in complaint(*train, "sft.learning_rate=1e-4")  # a good one gets further


def test_set_values_have_yaml_types(tmp_path: Path) -> None:
    values: dict[str, Any] = {"sft": {"epochs": 1}}
    with_overrides(values, ("sft.epochs=2", "sft.bf16=true", "data.limit=null", "prompt=alpaca"))
    assert values == {"sft": {"epochs": 2, "bf16": True}, "data": {"limit": None}, "prompt": "alpaca"}


def test_the_last_of_equal_changes_counts_where_it_stands() -> None:
    changes = as_changes(("models.a.device=cpu", "models={a: x/a}", "models.a.device=meta"))
    assert list(changes.items()) == [("models", {"a": "x/a"}), ("models.a.device", "meta")]


def test_ctrl_c_says_how_to_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fusionroute.training.run

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fusionroute.training.run, "train", interrupted)
    path = tmp_path / "team.yaml"
    path.write_text(TEAM_YAML)
    result = run("train", path, "--output", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted; run the same command again to continue\n"


def test_options_of_a_dry_run_need_one(tmp_path: Path) -> None:
    path = tmp_path / "team.yaml"
    path.write_text(TEAM_YAML)
    assert "--output is missing" in complaint("train", path)
    for option in (("--no-probe",), ("--processes", 2), ("--json",)):
        assert f"{option[0]} says how to make a plan; add --dry-run" in complaint("train", path, *option)
    assert "/no/such/model" in complaint("train", path, "--dry-run", "--no-probe", "--processes", 2, "--json")


def test_a_dry_run_is_shown_as_a_table(tmp_path: Path) -> None:
    model = tiny.language_model()
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n' * 3)
    path = tmp_path / "team.yaml"
    path.write_text(TEAM_YAML.replace("/no/such", str(tmp_path)).replace("train.jsonl", str(tmp_path / "train.jsonl")))
    before = sorted(tmp_path.rglob("*"))
    result = run("train", path, "--dry-run", "--no-probe", "--set", "device=cpu")
    assert result.exit_code == 0
    cells = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert cells["router"][2] == f"{sum(p.numel() for p in tiny.router(num_experts=2).parameters()):,}"
    assert cells["score"][:7] == ["score", "experts", "read", "3", "18", "1", "16"]
    assert cells["sft"][:7] == ["sft", "Eq.", "(2)", "3", "18", "1", "8"]
    assert cells["sft"][-2:] == ["MiB", "–"]
    assert "read data.train" in result.stderr
    assert result.stdout.endswith(f"next: fusionroute train {path} --output …\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_stage_two_alone_needs_its_section(tmp_path: Path) -> None:
    path = tmp_path / "team.yaml"
    path.write_text(TEAM_YAML)
    assert "there is no section cdpo" in complaint("cdpo", path, "--output", tmp_path / "out")


# --- zoo, env, help ---------------------------------------------------------------------------------------------------


def test_zoo_examples_are_json_lines() -> None:
    lines = run("zoo", "examples", "sums", "--split", "test", "--count", 3, "--seed", 1).stdout.splitlines()
    assert [json.loads(line)["task"] for line in lines] == ["sums"] * 3
    assert "sums" in complaint("zoo", "examples", "sum")


def test_version() -> None:
    assert run("--version").stdout.startswith("fusionroute 0.")


def test_help_in_a_process_of_its_own() -> None:
    result = started("--help")
    assert result.returncode == 0
    for command in ("demo", "train", "score", "sft", "cdpo", "generate", "chat", "env", "zoo"):
        assert f" {command} " in result.stdout
    assert "\x1b[" not in result.stdout


def test_env_in_a_process_of_its_own() -> None:
    result = started("env", "--json")
    facts = json.loads(result.stdout)
    assert result.stderr == ""
    assert {"fusionroute", "python", "torch", "transformers", "cpus", "torch_threads", "devices"} <= facts.keys()


def test_the_command_line_itself_imports_nothing_heavy() -> None:
    """The package's __init__ aside, whose names are its own affair: a stand-in takes its place."""
    program = (
        "import sys, types\n"
        "package = types.ModuleType('fusionroute')\n"
        f"package.__path__ = [{str(Path(fusionroute.cli.console.__file__).parents[1])!r}]\n"
        "sys.modules['fusionroute'] = package\n"
        "import fusionroute.cli\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_help_fits_a_screen() -> None:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert len(result.output.splitlines()) <= 36
    for command in ("demo", "lm-eval", "roma", "zoo"):
        assert f"│ {command} " in result.output
