"""``fusionroute serve``: what it refuses in one line, and that it serves until it is told to stop."""

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import tiny
from fusionroute.cli.serve import serve as serve_command
from fusionroute.server.settings import KEY_VARIABLE, ServerSettings
from test_cli import complaint, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "tiny"
    tiny.team(prompt="chat_template").save_pretrained(path, save_experts=True)
    return path


def test_it_answers_until_it_is_told_to_stop(folder: Path) -> None:
    arguments = [sys.executable, "-m", "fusionroute", "serve", str(folder), "--port", "0", "--name", "mine"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        try:
            ready = server.stdout.readline()
            assert ready.startswith("ready at http://127.0.0.1:")
            address = ready.split()[2]
            ids = [server.stdout.readline().strip() for _ in range(7)]
            assert ids[0] == "mine"
            assert {"mine/math", "mine/average", "mine/no-complement"} <= set(ids)
            body = {"model": "mine", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
            request = urllib.request.Request(
                f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as reply:
                assert json.load(reply)["model"] == "mine"
            server.send_signal(signal.SIGTERM)
            _, log = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line.get("path", line.get("event")) for line in lines] == ["/v1/chat/completions", "stopping"]


def test_a_worker_that_dies_ends_the_process(folder: Path) -> None:
    """With a code by which whoever watches it knows that it has to be started again."""
    broken = (
        "from fusionroute.cli import app; from fusionroute.server.worker import Worker\n"
        "def bug(*_): raise RuntimeError('a bug')\n"
        "Worker._round = bug; app()"
    )
    arguments = [sys.executable, "-c", broken, "serve", str(folder), "--port", "0", "--name", "mine"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().split()[2]
            request = urllib.request.Request(
                f"{address}/v1/completions",
                json.dumps({"model": "mine", "prompt": "hi"}).encode(),
                {"Content-Type": "application/json"},
            )
            with pytest.raises(urllib.error.HTTPError) as failed:
                urllib.request.urlopen(request, timeout=60)
            assert failed.value.code == 500
            failed.value.close()
            _, log = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 1
    assert log.splitlines()[-1].startswith("error: the server's worker has died")


def test_the_help_says_the_defaults(folder: Path) -> None:
    """They cannot be read where the help is made: that would load torch for every command."""
    fields = ServerSettings.model_fields
    for option in inspect.signature(serve_command).parameters.values():
        told = re.search(r"else ([\w.]+)", option.annotation.__metadata__[0].help or "")
        if option.name in fields and told and told[1] not in ("its", "the", "what"):
            default = ServerSettings.model_validate({option.name: told[1].rstrip(".")})
            assert getattr(default, option.name) == fields[option.name].default, option.name


def test_a_port_that_is_taken(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = complaint("serve", folder, "--port", port)
    assert f"cannot listen on 127.0.0.1 port {port}" in said
    assert "--port" in said


def test_an_address_that_is_not_here(folder: Path) -> None:
    result = run("serve", folder, "--host", "192.0.2.1")
    assert result.exit_code == 2
    assert "error: cannot listen on 192.0.2.1 port 8000" in result.stderr.splitlines()[-1]


def test_nothing_to_serve(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in complaint("serve", tmp_path / "nowhere", "--port", 0)
    assert "nowhere.yaml" in complaint("serve", tmp_path / "nowhere.yaml", "--port", 0)


def test_keys_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert "cannot be read (No such file" in complaint("serve", folder, "--api-key-file", keys)
    keys.write_text("# none yet\n\n")
    assert "holds no key" in complaint("serve", folder, "--api-key-file", keys)
    keys.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in complaint("serve", folder, "--api-key-file", keys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", 70000), "port: Input should be less than or equal to 65535"),
        (("--max-batch", 0), "max_batch: Input should be greater than 0"),
        (("--max-body", "much"), "max_body: a number of bytes above 0 is needed"),
        (("--time-limit", "nan"), "time_limit: Input should be a finite number"),
        (("--cache-limit", "lots"), "cache_limit"),
        (("--name", "a/b"), "name"),
    ],
)
def test_bad_options_are_told_before_anything_is_loaded(folder: Path, arguments: tuple, message: str) -> None:
    assert message in complaint("serve", folder, *arguments)


def test_without_the_extra_it_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["fusionroute.cli.serve"]  # by its dotted name one gets the command
    monkeypatch.setattr(module, "NEEDED", ("uvicorn", "no_such_library"))
    assert "serving needs no_such_library: pip install 'fusionroute[server]'" in complaint("serve", folder)


def warnings_for(folder: Path, *arguments: Any) -> list[str]:
    """The lines before it fails, for it is told to load what is not there."""
    result = run("serve", folder / "nowhere", "--port", 0, *arguments)
    assert result.exit_code == 2
    *before, last = result.stderr.splitlines()
    assert last.startswith("error:")
    return before


def test_an_open_door_is_told_loudly(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (warning,) = warnings_for(folder, "--host", "0.0.0.0")
    assert warning.startswith("warning: anybody who reaches 0.0.0.0 may use these models")
    assert "--api-key-file" in warning
    assert warnings_for(folder) == []
    (tmp_path / "keys").write_text("one\n")
    assert warnings_for(folder, "--host", "0.0.0.0", "--api-key-file", tmp_path / "keys") == []
    monkeypatch.setenv(KEY_VARIABLE, "another")
    assert warnings_for(folder, "--host", "0.0.0.0") == []
