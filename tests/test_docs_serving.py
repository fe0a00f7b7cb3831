"""docs/serving.md: its options, fields and defaults are the code's; what it says to send is sent to a real server."""

import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.main import get_command

from fusionroute.cli import app
from fusionroute.server.api.schemas import ChatRequest, CompletionRequest, supported
from fusionroute.server.settings import ServerSettings
from served import Server, endless_team, running_server, saved

TEXT = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
CURL = [block for kind, block in BLOCKS if kind == "shell"]
COMMANDS = [line.strip() for line in TEXT.splitlines() if line.startswith("    fusionroute ")]


def section(title: str) -> str:
    said = re.split(r"\n#{2,3} ", TEXT.partition(f"# {title}\n")[2])[0]
    return re.sub(r"```.*?```", "", said, flags=re.DOTALL)


def table(title: str) -> list[list[str]]:
    """Rows of the tables of a section, without their heads."""
    rows = [line for line in section(title).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    heads = {at - 1 for at, row in enumerate(rows) if set(row) <= set("|- ")}
    return [row for at, row in enumerate(cells) if at not in heads and at - 1 not in heads]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def options_of_serve() -> dict[str, str]:
    """Every option of the command line, with the name of its parameter."""
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {option: each.name for each in serve.params for option in (*each.opts, *each.secondary_opts)}


# options


def test_every_option_that_the_page_names_exists() -> None:
    known = set(options_of_serve())
    of_others = {"--set", "--model", "--model_args", "--tasks", "--apply_chat_template", "--output", "--workers"}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", TEXT)) - of_others
    assert named - known == set()
    assert {each for each in known if each.startswith("--")} - named <= {"--help"}, "the page does not name them"


def test_every_setting_stands_in_the_table_with_its_default() -> None:
    rows = {name: row for row in table("Options") for name in names(row[0])}
    parameters = options_of_serve()
    assert set(rows) <= set(parameters)
    fields = ServerSettings.model_fields
    of_rows = {parameters[name] for name in rows}
    by_another_name = {
        "playground": "--no-playground",
        "allowed_hosts": "--allowed-host",
        "prefix_reuse": "--no-prefix-reuse",
    }
    for name in fields:
        if name == "api_keys":  # never on the command line
            assert "FUSIONROUTE_API_KEY" in TEXT
            continue
        assert name in of_rows or by_another_name.get(name) in rows, f"{name} is not in the table"
    defaults = ServerSettings()
    for option, (_, default, _) in rows.items():
        if value := names(default):
            assert ServerSettings.parse({parameters[option]: _typed(value[0])}) == defaults, option


def _typed(text: str) -> Any:
    return float(text) if re.fullmatch(r"\d+", text) else text


def test_the_commands_that_start_a_server_are_understood() -> None:
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    found = [shlex.split(line, comments=True)[2:] for line in COMMANDS if line.startswith("fusionroute serve")]
    assert len(found) >= 2
    for arguments in found:
        serve.make_context("serve", arguments)


# requests


def test_every_field_is_named_and_every_named_field_exists() -> None:
    rows = [name for row in table("What a request may say") for name in names(row[0])]
    assert len(rows) > 20
    assert set(rows) == {*supported(ChatRequest), *supported(CompletionRequest)}


def test_defaults_and_limits_are_the_descriptions_own() -> None:
    schema = CompletionRequest.model_json_schema()
    fields = {name: str(field) for name, field in schema["properties"].items()}
    assert "'maximum': 20" in fields["logprobs"]
    assert "'maximum': 20" in fields["candidates"]
    assert "'maxItems': 16" in fields["stop"]
    assert "'maximum': 2" in fields["temperature"]


# a real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = saved(endless_team(), tmp_path_factory.mktemp("models") / "team")
    limits = (
        "--max-body",
        "64KiB",
        "--body-timeout",
        "1",
        "--time-limit",
        "20",
        "--max-n",
        "4",
        "--max-new-tokens",
        "64",
    )
    with running_server(folder, "--device", "cpu", "--cache-limit", "1MiB", *limits) as server:
        yield server


@pytest.fixture
def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.mark.parametrize("block", CURL, ids=lambda block: block.splitlines()[1].strip(' "'))
def test_what_curl_sends_is_answered(block: str, address: str) -> None:
    words = shlex.split(block)
    assert words[0] == "curl"
    assert "Content-Type: application/json" in words
    (place,) = (word for word in words if word.startswith(ADDRESS))
    payload = json.loads(words[words.index("-d") + 1])
    reply = httpx.post(place.replace(ADDRESS, address), json=payload, timeout=30)
    assert reply.status_code == 200, reply.text
    if payload.get("stream"):
        *_, usage, done = reply.text.strip().split("\n\n")
        assert done == "data: [DONE]"
        assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] > 0
        assert json.loads(usage.removeprefix("data: "))["choices"] == []
    elif "prompt" in payload:
        (choice,) = reply.json()["choices"]
        assert choice["text"] == payload["prompt"]
        first, *rest = choice["logprobs"]["token_logprobs"]
        assert first is None
        assert all(value < 0 for value in rest)
    else:
        assert reply.json()["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_runs_against_a_server(block: str, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    imported = [node.module for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    for module in imported:
        if module and importlib.util.find_spec(module.split(".")[0]) is None:
            pytest.skip(f"{module} is not installed")
    exec(compile(block.replace(ADDRESS, address), "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_provenance_has_the_shape_that_the_page_shows(address: str) -> None:
    (shown,) = (json.loads(block) for kind, block in BLOCKS if kind == "json")
    payload = {
        "model": "team", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "provenance": True,
        "candidates": 2,
    }  # fmt: skip
    reply = httpx.post(f"{address}/v1/chat/completions", json=payload, timeout=30).json()
    for record in reply["choices"][0]["provenance"]:
        assert set(record) == set(shown)
        assert {name: type(value) for name, value in record.items()} == {k: type(v) for k, v in shown.items()}
        assert list(record["weights"]) == ["math", "code", "chat"] == list(shown["weights"])
        assert list(record["candidates"]) == ["router", record["expert"], "fused"]
        assert all(
            set(each) == {"token", "token_id", "logprob"}
            for likeliest in record["candidates"].values()
            for each in likeliest
        )
        assert record["decided_by"] in names(section("What a request may say"))


def test_metrics_are_those_of_the_server(server: Server) -> None:
    named = {name for row in table("What to watch") for name in names(row[0])}
    families = re.findall(r"^# TYPE (\S+) ", server.get("/metrics"), re.MULTILINE)
    assert named == {name for name in families if not name.endswith("_created")}


def test_model_ids_are_those_of_the_table(address: str) -> None:
    listed = [each["id"] for each in httpx.get(f"{address}/v1/models").json()["data"]]
    described = [names(row[0])[0] for row in table("Model ids")]
    assert set(described) <= set(listed)
    assert set(listed) - set(described) == {"team/code", "team/chat"}  # "so for each expert"
    about = httpx.get(f"{address}/v1/models/team/math").json()["fusionroute"]
    named = names(section("Model ids").rpartition("what each can do:")[2])
    assert set(named) - {"provenance"} == set(about) - {"description"}


CHAT: dict[str, Any] = {"model": "team", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
AT_CHAT = "/v1/chat/completions"
BAD: dict[str, list[tuple[str, Any]]] = {  # by the first words of the page's row
    "invalid JSON": [(AT_CHAT, b"{"), (AT_CHAT, b'{"model": "\xff"}')],
    "a wrong type": [
        (AT_CHAT, {**CHAT, "max_tokens": "many"}),
        (AT_CHAT, {**CHAT, "temperature": -1}),
        (AT_CHAT, {**CHAT, "n": 5}),
        (AT_CHAT, {**CHAT, "n": 10**30}),
        (AT_CHAT, {**CHAT, "max_tokens": 65}),
    ],
    "a field that is": [(AT_CHAT, {"messages": CHAT["messages"]}), ("/v1/completions", {"model": "team"})],
    "a part of a message": [
        (AT_CHAT, {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]})
    ],
    "a body that is not sent": [(AT_CHAT, CHAT)],
    "an unknown field": [(AT_CHAT, {**CHAT, "temprature": 1})],
    "a known field": [
        (AT_CHAT, {**CHAT, "tools": [{"type": "function"}]}),
        (AT_CHAT, {**CHAT, "logit_bias": {"1": 2}}),
    ],
    "an empty list": [
        (AT_CHAT, {**CHAT, "messages": []}),
        (AT_CHAT, {**CHAT, "messages": [*CHAT["messages"], {"role": "assistant", "content": "so"}]}),
    ],
    "a prompt that does": [(AT_CHAT, {**CHAT, "messages": [{"role": "user", "content": "long " * 2000}]})],
    "a request that could": [(AT_CHAT, {**CHAT, "messages": [{"role": "user", "content": "long " * 780}]})],
    "a name by which": [(AT_CHAT, CHAT)],
    "an unknown model": [(AT_CHAT, {**CHAT, "model": "nobody"})],
    "an unknown address": [("/v1/nothing", {})],
    "a body above": [(AT_CHAT, b" " * (2**16 + 1))],
}


@pytest.mark.parametrize("row", table("Errors"), ids=lambda row: row[0][:24])
def test_errors_are_as_the_table_says(row: list[str], address: str) -> None:
    came, status, kind, code = row
    sent = next((sent for words, sent in BAD.items() if came.startswith(words)), None)
    if sent is None:
        assert came.startswith(TOLD_ELSEWHERE), "a row that nothing tries"
        return
    for place, payload in sent:
        content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        headers = {"Content-Type": "text/plain" if "Content-Type" in came else "application/json"}
        headers |= {"Host": "a-stranger.example"} if "--allowed-host" in came else {}
        reply = httpx.post(f"{address}{place}", content=content, headers=headers, timeout=30)
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (reply.status_code, error["type"]) == (int(status[:3]), names(kind)[0]), reply.text
        if names(code):
            assert error["code"] == names(code)[0], reply.text


# tried where it can be brought about: in the tests of load, of shutdown, of security and of the API
TOLD_ELSEWHERE = (
    "a chat with an id", "a wrong key", "a wrong method", "a body that does not", "a full queue", "a model that fails",
    "a reply that would", "anything else", "more clients", "the server is stopping", "the thread that writes",
    "an answer that takes",
)  # fmt: skip


def test_codes_that_are_tried_elsewhere_are_the_servers() -> None:
    source = "".join(path.read_text() for path in (Path(__file__).parents[1] / "fusionroute" / "server").rglob("*.py"))
    for *_, code in table("Errors"):
        for name in names(code):
            assert f'"{name}"' in source


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if not target.startswith("images/playground"):  # drawn by another hand
            assert (Path(__file__).parents[1] / "docs" / target).exists(), target
