"""The deployment files in examples/serving/: they cannot be run here, so what matters in them is read off."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from fusionroute.cli import app
from fusionroute.server.settings import ServerSettings

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "serving"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
UNIT = (FOLDER / "fusionroute.service").read_text()
NGINX = (FOLDER / "nginx.conf").read_text()
CADDY = (FOLDER / "Caddyfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order: name and the rest, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.strip().partition(" ") for line in joined)]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]


def of(name: str) -> str:
    (rest,) = (rest for each, rest in final_stage() if each == name)
    return rest


def directives() -> dict[str, str]:
    """Of the unit's [Service]; a name that stands twice keeps all its values."""
    section = UNIT.partition("[Service]")[2].partition("[Install]")[0]
    found: dict[str, str] = {}
    for line in section.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[name] = f"{found[name]} {value}" if name in found else value
    return found


def parsed(arguments: list[str]) -> dict[str, object]:
    """Arguments of ``fusionroute serve`` as the command line itself reads them."""
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return dict(serve.make_context("serve", list(arguments)).params)


# the container


def test_the_image_runs_as_somebody_who_is_not_root() -> None:
    user = of("USER")
    uid, gid = (int(part) for part in user.split(":"))
    assert uid >= 1000
    assert gid >= 1000
    names = [name for name, _ in final_stage()]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert f"--uid {uid}" in DOCKERFILE


def test_signals_reach_the_server_in_the_image() -> None:
    entry, command = json.loads(of("ENTRYPOINT")), json.loads(of("CMD"))  # a list, so no shell stands between
    assert entry == ["fusionroute", "serve"]
    assert of("STOPSIGNAL") == "SIGTERM"
    options = parsed(command)
    assert str(options["team"]).startswith("/models/")
    assert options["host"] == "0.0.0.0"
    assert options["api_key_file"] is not None, "a port that is open to all needs keys"
    assert str(options["port"]) == of("EXPOSE")


def test_the_image_asks_its_health_with_what_it_has() -> None:
    check = of("HEALTHCHECK")
    command = json.loads(check[check.index("CMD ") + 4 :])
    assert command[0] == "python"
    compile(command[2], "HEALTHCHECK", "exec")
    assert f"http://127.0.0.1:{of('EXPOSE')}/health" in command[2]


def test_the_image_is_built_from_pinned_versions_and_keeps_no_cache() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in each for each in installs)
    assert "PIP_NO_CACHE_DIR=1" in DOCKERFILE
    bases = [rest for name, rest in instructions() if name == "FROM"]
    assert all(base.startswith("python:${PYTHON}") for base in bases)
    (version,) = re.findall(r"ARG PYTHON=3\.(\d+)-slim$", DOCKERFILE, re.MULTILINE)
    assert int(version) >= 11, "requires-python"
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources), rest


def test_nothing_secret_and_nothing_large_gets_into_the_image() -> None:
    assert [name for name, _ in instructions() if name == "ADD"] == []
    words = re.compile(r"(?i)(key|token|secret|password)[\w]*\s*=\s*\S")
    assert [rest for name, rest in instructions() if name in ("ENV", "ARG") and words.search(rest)] == []
    rules = [
        line for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in ("#", "")
    ]
    assert rules[0] == "*", "what is not named stays out"
    copied = {source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]}
    named = {rule[1:] for rule in rules if rule.startswith("!")}
    assert {source.removeprefix("./") for source in copied if not source.startswith(("/", "--"))} == named
    assert not named & {"runs", ".git", ".venv", "tests"}


def test_models_come_in_from_outside() -> None:
    assert json.loads(of("VOLUME")) == ["/models"]
    assert re.search(r"-v \S+:/models/team:ro", DOCKERFILE)


# the service


def test_the_unit_starts_what_there_is() -> None:
    program, verb, *arguments = shlex.split(directives()["ExecStart"])
    assert Path(program).name == "fusionroute"
    assert verb == "serve"
    options = parsed(arguments)
    assert options["host"] == "127.0.0.1"
    assert str(options["api_key_file"]) == "%d/api-keys"
    assert directives()["LoadCredential"].split(":")[0] == "api-keys"


def test_the_unit_leaves_time_to_finish() -> None:
    found = directives()
    _, _, *arguments = shlex.split(found["ExecStart"])
    assert float(found["TimeoutStopSec"]) > float(str(parsed(arguments)["grace"]))
    assert found["KillSignal"] == "SIGTERM"
    assert found["KillMode"] == "mixed"


def test_the_unit_is_hardened() -> None:
    found = directives()
    for name in ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "RestrictNamespaces"):
        assert found[name] == "yes", name
    assert found["ProtectSystem"] == "strict"
    assert found["CapabilityBoundingSet"] == ""
    assert int(found["LimitNOFILE"]) > 2 * ServerSettings().max_connections
    assert not re.search(r"(?i)api_key\s*=", UNIT), "a unit file is read by everybody"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here to ask")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / "fusionroute.service"
    copy.write_text(UNIT.replace("/opt/fusionroute/bin/fusionroute", sys.executable))
    verified = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    if "Failed to" in verified.stderr and "fusionroute.service" not in verified.stderr:
        pytest.skip(f"systemd-analyze does not run here: {verified.stderr.strip()}")
    assert verified.returncode == 0, verified.stderr
    assert "fusionroute.service" not in verified.stderr


# proxies


def test_proxies_pass_tokens_on_as_they_come_and_bound_slow_clients() -> None:
    assert NGINX.count("{") == NGINX.count("}")
    assert re.search(r"^\s*proxy_buffering\s+off;", NGINX, re.MULTILINE)
    assert re.search(r"^\s*client_header_timeout\s+\d+s;", NGINX, re.MULTILINE)
    (seconds,) = re.findall(r"^\s*proxy_read_timeout\s+(\d+)s;", NGINX, re.MULTILINE)
    assert int(seconds) > ServerSettings().time_limit
    (mebibytes,) = re.findall(r"^\s*client_max_body_size\s+(\d+)m;", NGINX, re.MULTILINE)
    assert int(mebibytes) * 2**20 == ServerSettings().max_body
    statements = [line.partition("#")[0].strip() for line in NGINX.splitlines()]
    assert all(not line or line.endswith((";", "{", "}")) for line in statements)
    assert CADDY.count("{") == CADDY.count("}")
    assert "flush_interval -1" in CADDY
    assert "read_header" in CADDY
    assert f"max_size {ServerSettings().max_body // 2**20}MiB" in CADDY
