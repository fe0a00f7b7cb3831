"""SIGTERM under load: streams end as they should or say that they were cut, and the process ends with code 0."""

import asyncio
import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from served import Connection, Reply, Server, endless_team, running_command, running_server, saved

CHAT = "/v1/chat/completions"
STREAMS = 6
TOKENS = 100  # of an answer that ends in time; many more than are written while the signal is on its way
Ending = Callable[[Server], Awaitable[None]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(endless_team(), tmp_path_factory.mktemp("models") / "team")


def payload(at: int, tokens: int, **changes: Any) -> dict[str, Any]:
    asked = {"model": "team", "messages": [{"role": "user", "content": f"question {at}"}], "temperature": 0}
    return {**asked, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}, **changes}


async def under_load(server: Server, tokens: int, ending: Ending, **changes: Any) -> list[Reply]:
    """Replies to clients in the middle of whose answers ``ending`` happens."""
    connections = [await Connection.open(server.port) for _ in range(STREAMS)]
    posts = [
        asyncio.ensure_future(connection.post(CHAT, payload(at, tokens, **changes)))
        for at, connection in enumerate(connections)
    ]
    try:
        async with asyncio.timeout(60):
            while (await asyncio.to_thread(server.metrics))["fusionroute_sequences_running"] < STREAMS:
                await asyncio.sleep(0.02)
            await ending(server)
            return await asyncio.gather(*posts)
    finally:
        for post in posts:
            post.cancel()
        await asyncio.gather(*posts, return_exceptions=True)
        await asyncio.gather(*(connection.close() for connection in connections))


def reasons(reply: Reply) -> set[str]:
    return {
        choice["finish_reason"]
        for event in reply.events()
        for choice in event.get("choices", ())
        if choice.get("finish_reason")
    }


def error_of(reply: Reply) -> dict[str, Any]:
    (error,) = (event["error"] for event in reply.events() if "error" in event)
    return dict(error)


async def terminate(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)


def test_running_streams_finish_and_new_requests_are_refused(folder: str) -> None:
    async def ending(server: Server) -> None:
        late = await Connection.open(server.port)  # connected before, asks after
        await terminate(server)
        refused = None
        for _ in range(100):  # until the signal has arrived
            refused = await late.post(CHAT, payload(0, 1, stream=False, stream_options=None))
            if refused.status != 200:
                break
            await asyncio.sleep(0.01)
        await late.close()
        assert refused is not None
        assert refused.status == 503
        assert json.loads(refused.body)["error"]["code"] == "shutting_down"

    with running_server(folder, "--grace", "60", "--cache-limit", "128MiB") as server:
        replies = asyncio.run(under_load(server, TOKENS, ending))
        assert server.process.wait(30) == 0
    for reply in replies:
        assert reply.status == 200
        assert reply.is_done
        assert reasons(reply) <= {"stop", "length"}
        assert len(reasons(reply)) == 1
        assert reply.completion_tokens == TOKENS


def test_streams_that_are_cut_say_so(folder: str) -> None:
    with running_server(folder, "--grace", "0.5", "--cache-limit", "128MiB") as server:
        replies = asyncio.run(under_load(server, 4000, terminate))
        began = time.monotonic()
        assert server.process.wait(15) == 0
        assert time.monotonic() - began < 10
    for reply in replies:
        assert reply.status == 200  # it had begun
        assert reply.is_done
        assert reasons(reply) == set()
        assert error_of(reply)["code"] == "shutting_down"
        assert error_of(reply)["type"] == "server_error"


def test_a_second_signal_ends_it_at_once(folder: str) -> None:
    ended: list[float] = []

    async def ending(server: Server) -> None:
        await terminate(server)
        await asyncio.sleep(0.3)
        assert server.process.poll() is None, "one signal leaves time to finish"
        began = time.monotonic()
        await terminate(server)
        assert await asyncio.to_thread(server.process.wait, 10) == 128 + signal.SIGTERM
        ended.append(time.monotonic() - began)

    with (
        running_server(folder, "--grace", "60", "--cache-limit", "128MiB", ends_with=128 + signal.SIGTERM) as server,
        pytest.raises((ConnectionError, asyncio.IncompleteReadError)),  # streams that broke off
    ):
        asyncio.run(under_load(server, 4000, ending))
    assert ended[0] < 2


def test_answers_that_are_not_streamed_are_refused_when_grace_is_over(folder: str) -> None:
    with running_server(folder, "--grace", "0.3", "--cache-limit", "128MiB") as server:
        replies = asyncio.run(under_load(server, 4000, terminate, stream=False, stream_options=None))
        assert server.process.wait(15) == 0
    assert {reply.status for reply in replies} == {503}
    assert {json.loads(reply.body)["error"]["code"] for reply in replies} == {"shutting_down"}


def test_an_idle_server_stops_at_once_and_says_nothing_alarming(folder: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_command(folder, "--cache-limit", "64MiB", log=log) as server:
        idle = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=5)
        assert json.load(idle) == {"status": "ok"}
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=5)
    assert "Traceback" not in log.read_text()
