"""Who may ask, how much of the server one client may hold, and what is written down about it."""

import asyncio
import json
import logging
import socket
import time
from typing import Any

import httpx
import openai
import pytest

import tiny_server
from fusionroute.server.api.security import KnownHost, TimedSending
from fusionroute.server.settings import ServerSettings

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a secret question"}], "max_tokens": 3}
LONG = {**CHAT, "max_tokens": 100, "temperature": 0}
KEYS = ["first-key", "second-key"]


def error_of(reply: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    return found


def connect(served: Any) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def test_a_key_is_needed_where_there_are_keys(serve: Any, team: Any) -> None:
    with serve(tiny_server.offer(team), api_keys=KEYS) as served:
        for key in KEYS:
            for scheme in ("Bearer", "bearer"):
                reply = served.post(CHAT, headers={"Authorization": f"{scheme} {key}"})
                assert reply.status_code == 200
        wrong = [{}, {"Authorization": "Bearer"}, {"Authorization": "Basic first-key"}, {"Authorization": "first-key"}]
        wrong += [{"Authorization": f"Bearer {key}"} for key in ("first-kex", "first-key ,", "FIRST-KEY", "é")]
        paths = ["/v1/models", "/v1/models/tiny", "/metrics", "/openapi.json", "/v1/nothing", "//v1/models"]
        for headers in wrong:
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            for reply in (served.post(CHAT, headers=raw), *(served.http.get(path, headers=raw) for path in paths)):
                assert reply.status_code == 401
                assert reply.headers["www-authenticate"] == "Bearer"
                assert error_of(reply)["code"] == "invalid_api_key"
        assert [served.http.get(path).status_code for path in ("/health", "/version", "/")] == [200] * 3
    with serve(tiny_server.offer(team), key=KEYS[1], api_keys=KEYS) as served:
        assert served.openai.models.list().data


def test_nobody_without_a_key_makes_the_server_read_a_body(serve: Any, team: Any) -> None:
    with serve(tiny_server.offer(team), api_keys=KEYS) as served, connect(served) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert b"401" in connection.recv(65536)


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large(serve: Any, team: Any, declared: bool) -> None:
    with serve(tiny_server.offer(team), max_body=10_000) as served:
        body = json.dumps({**CHAT, "user": "x" * 20_000}).encode()
        content = body if declared else iter([body[:6000], body[6000:]])
        for _ in range(2):
            reply = served.http.post(
                "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
            )
            assert reply.status_code == 413
            assert error_of(reply)["code"] == "request_too_large"
            content = body
        with pytest.raises(openai.APIStatusError) as caught:
            served.openai.completions.create(model="tiny", prompt="x" * 20_000)
        assert caught.value.status_code == 413
        assert served.post(CHAT).status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_who_sends_all_of_far_too_much_still_hears_it(serve: Any, team: Any, declared: bool) -> None:
    """As clients do that read nothing before they have sent everything."""
    body = b"x" * (6 * 2**20)
    length = f"Content-Length: {len(body)}" if declared else "Transfer-Encoding: chunked"
    framed = body if declared else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with serve(tiny_server.offer(team), max_body="1MiB") as served, connect(served) as connection:
        connection.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode() + framed)
        head, _, reply = connection.makefile("rb").read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413")
        assert json.loads(reply)["error"]["code"] == "request_too_large"


def test_who_asks_before_it_sends_is_not_made_to_send(served: Any) -> None:
    with connect(served) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 5000000\r\nExpect: 100-continue\r\n\r\n"
        )
        connection.settimeout(5)
        assert until_closed(connection).startswith(b"HTTP/1.1 413")


def asked_as(host: str | None, *hosts: str, path: str = "/v1/models") -> tuple[int, bytes]:
    """What a server of these allowed hosts says to a request for ``host``."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"welcome"})

    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    allowed = ServerSettings.parse({"allowed_hosts": list(hosts)}).allowed_hosts
    headers = [] if host is None else [(b"host", host.encode("latin-1"))]
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
    asyncio.run(KnownHost(app, allowed)(scope, None, send))  # type: ignore[arg-type]
    return said[0]["status"], said[1]["body"]


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8000", "localhost.", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000", "a.localhost"],
)
def test_this_machine_is_a_known_host(host: str) -> None:
    assert asked_as(host) == (200, b"welcome")


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0:8000",
     "[2001:db8::1]", "localhost@evil.example", "evil.example#localhost", "192.168.0.7", "\xe9"],
)  # fmt: skip
def test_another_host_is_refused(host: str | None) -> None:
    status, body = asked_as(host)
    error = json.loads(body)["error"]
    assert status == 403
    assert error["code"] == "unknown_host"
    assert error["type"] == "invalid_request_error"
    assert "--allowed-host" in error["message"]
    assert asked_as(host, path="/health")[0] == 200
    assert asked_as(host, "*")[0] == 200


def test_hosts_can_be_allowed() -> None:
    allowed = ("Models.Example.", "2001:DB8::1", "10.0.0.5")
    for host in (
        "models.example",
        "MODELS.example:443",
        "models.example.",
        "[2001:db8::1]:80",
        "10.0.0.5",
        "localhost",
    ):
        assert asked_as(host, *allowed)[0] == 200, host
    for host in ("example", "xmodels.example", "10.0.0.50", "[2001:db8::2]"):
        assert asked_as(host, *allowed)[0] == 403, host


def test_a_body_that_comes_too_slowly(serve: Any, team: Any) -> None:
    with serve(tiny_server.offer(team), body_timeout=0.3) as served:
        with connect(served) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 50\r\n\r\n{"
            )
            reply = until_closed(connection)
            assert reply.startswith(b"HTTP/1.1 408")
            assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        for started in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
            with connect(served) as connection:
                connection.sendall(started)
                assert until_closed(connection) == b"", "a head that never ends is not waited for"
        with connect(served) as connection:  # nor behind a request that was answered
            connection.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200" in connection.recv(65536)
            connection.sendall(b"GET /version HT")
            until_closed(connection)
        assert served.post(CHAT).status_code == 200


def test_a_client_that_takes_nothing() -> None:
    """What `send` waits for is uvicorn's transport, so it is asked with one that never takes anything."""
    aborted = []

    class Connection:
        def abort(self) -> None:
            aborted.append(True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise AssertionError("it goes on though nobody listens")

    async def never(*_: Any) -> Any:
        await asyncio.sleep(60)

    scope = {"type": "http", "path": "/", "state": {"fusionroute.connection": Connection()}}
    asyncio.run(TimedSending(app, 0.05)(scope, never, never))
    assert aborted


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(served: Any, stream: bool) -> None:
    body = json.dumps({**LONG, "stream": stream, "n": 4}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    before = served.worker.metrics.registry.get_sample_value(
        "fusionroute_finished_total", {"model": "tiny", "reason": "cancelled"}
    )
    with connect(served) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        tiny_server.wait_until(lambda: tiny_server.gauges(served.worker)["fusionroute_sequences_running"])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    served.wait_until_idle()
    after = served.worker.metrics.registry.get_sample_value(
        "fusionroute_finished_total", {"model": "tiny", "reason": "cancelled"}
    )
    assert after - (before or 0) >= 1


def test_a_client_that_leaves_while_it_waits(serve: Any, team: Any) -> None:
    with serve(tiny_server.offer(team, max_batch=1)) as served:
        held = tiny_server.ask(served.worker, "hi", max_new_tokens=140, ignore_eos=True).wait_for_token()
        with pytest.raises(httpx.ReadTimeout):
            served.post(CHAT, timeout=0.05)
        tiny_server.wait_until(lambda: tiny_server.gauges(served.worker)["fusionroute_requests_running"] <= 1)
        assert held.ticket is not None
        held.ticket.cancel()
        served.wait_until_idle()


def test_too_many_connections(serve: Any, team: Any) -> None:
    with serve(tiny_server.offer(team), max_connections=2) as served:
        with connect(served), connect(served):
            tiny_server.wait_until(lambda: len(served.server.server_state.connections) == 2)
            reply = served.post(CHAT)
            assert reply.status_code == 503
            assert error_of(reply)["code"] == "too_many_connections"
            assert reply.headers["retry-after"] == "1"
        tiny_server.wait_until(lambda: len(served.server.server_state.connections) < 2)
        assert served.post(CHAT).status_code == 200


def test_other_sites_pages_may_ask_only_where_they_are_named(serve: Any, served: Any, team: Any) -> None:
    origin = {"Origin": "https://page.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for headers in (
        served.http.get("/v1/models", headers=origin).headers,
        served.http.options("/v1/models", headers=preflight).headers,
    ):
        assert not [name for name in headers if name.startswith("access-control")]
    with serve(tiny_server.offer(team), cors=["https://page.example"], api_keys=KEYS) as open_to:
        assert open_to.http.options("/v1/chat/completions", headers=preflight).status_code == 200
        reply = open_to.http.get("/v1/models", headers=origin)
        assert reply.status_code == 401
        assert reply.headers["access-control-allow-origin"] == "https://page.example"
        other = open_to.http.get("/v1/models", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.message) for record in caplog.records if record.name == "fusionroute.server"]


def test_every_request_has_an_id_and_a_line(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fusionroute.server"):
        kept = served.post({**CHAT, "user": "me"}, headers={"X-Request-Id": "abc-1"})
        made = served.post({**CHAT, "stream": True}, headers={"X-Request-Id": "no good\tid"})
        lost = served.http.get("/v1/nothing")
        tiny_server.wait_until(lambda: len(lines(caplog)) == 3)
    assert kept.headers["x-request-id"] == "abc-1"
    ids = [made.headers["x-request-id"], lost.headers["x-request-id"]]
    assert len({*ids, "abc-1", "no good\tid"}) == 4
    first, second, third = lines(caplog)
    assert first["id"] == "abc-1"
    assert first["user"] == "me"
    assert first["status"] == 200
    assert first["model"] == "tiny"
    assert first["prompt_tokens"] == kept.json()["usage"]["prompt_tokens"]
    assert first["completion_tokens"] == kept.json()["usage"]["completion_tokens"]
    assert first["finish_reasons"] == [kept.json()["choices"][0]["finish_reason"]]
    assert second["stream"] is True
    assert second["completion_tokens"] >= 1
    assert third["status"] == 404
    assert "secret" not in caplog.text


def test_prompts_are_logged_only_where_it_is_wanted(serve: Any, team: Any, caplog: pytest.LogCaptureFixture) -> None:
    with (
        serve(tiny_server.offer(team), log_prompts=True) as served,
        caplog.at_level(logging.INFO, "fusionroute.server"),
    ):
        reply = served.post(CHAT)
        served.post({"model": "tiny", "prompt": "another", "max_tokens": 2, "stream": True}, "/v1/completions")
        tiny_server.wait_until(lambda: len(lines(caplog)) == 2)
    first, second = lines(caplog)
    assert first["messages"] == CHAT["messages"]
    assert first["texts"] == [reply.json()["choices"][0]["message"]["content"]]
    assert second["prompt"] == "another"


def test_health_version_and_metrics(serve: Any, team: Any) -> None:
    with serve(tiny_server.offer(team)) as served:
        assert served.http.get("/health").json() == {"status": "ok"}
        assert served.http.get("/version").json()["version"]
        served.post(CHAT)
        served.post({**CHAT, "model": "nobody"})
        tiny_server.wait_until(lambda: "404" in served.http.get("/metrics").text)
        told = served.http.get("/metrics")
        assert told.headers["content-type"].startswith("text/plain")
        assert 'fusionroute_requests_total{endpoint="/v1/chat/completions",model="tiny",status="200"} 1.0' in told.text
        assert 'endpoint="/v1/chat/completions",model="",status="404"' in told.text
        served.worker.begin_stopping(0)
        stopping = served.http.get("/health")
        assert stopping.status_code == 503
        assert error_of(stopping)["code"] == "shutting_down"
        refused = served.post(CHAT)
        assert refused.status_code == 503
        assert error_of(refused)["code"] == "shutting_down"


def test_a_stop_lets_streams_finish_or_says_that_they_did_not(serve: Any, team: Any) -> None:
    for grace in (30.0, 0.0):
        with serve(tiny_server.offer(team), grace=grace) as served:
            asked = {**LONG, "stream": True, "max_tokens": 60, "n": 3, "seed": 2, "temperature": 1}
            with served.http.stream("POST", "/v1/chat/completions", json=asked) as reply:
                pieces = reply.iter_lines()
                next(pieces)
                begun = time.monotonic()
                served.server.drain()
                rest = [line.removeprefix("data: ") for line in pieces if line]
            assert rest[-1] == "[DONE]"
            reasons = [c["finish_reason"] for each in rest[:-1] for c in json.loads(each).get("choices", ())]
            if grace:
                assert sum(reason is not None for reason in reasons) == 3
            else:
                assert time.monotonic() - begun < 10
                failed = [json.loads(each)["error"]["code"] for each in rest[:-1] if "error" in json.loads(each)]
                assert failed == ["shutting_down"] or sum(reason is not None for reason in reasons) == 3
