"""A server under load and under abuse: nobody's answer suffers from the others, nobody hangs, nothing is left over."""

import asyncio
import contextlib
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import tiny
from fusionroute import GenerationSettings, Team
from fusionroute.engine.sequence import Completion
from fusionroute.server.offer import Offer
from served import Connection, Reply, Server, endless_team, running_server, saved

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
IDS = ("team", "team/no-complement", "team/math")
NEW = 16


@pytest.fixture(scope="module")
def team() -> Team:
    return endless_team()


@pytest.fixture(scope="module")
def folder(team: Team, tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(team, tmp_path_factory.mktemp("models") / "team")


@pytest.fixture(scope="module")
def server(folder: str) -> Iterator[Server]:
    with running_server(folder, "--max-batch", "16", "--max-waiting", "128", "--cache-limit", "64MiB") as server:
        yield server
        assert server.left() == {}


def question(prompt: Any, model: str = "team", **changes: Any) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": NEW, **changes}


def head(size: int) -> bytes:
    """Of a request with a body of ``size`` bytes."""
    lines = (f"POST {COMPLETIONS} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
    return "\r\n".join([*lines, f"Content-Length: {size}", "", ""]).encode()


async def ask(port: int, payload: Any, path: str = COMPLETIONS, **options: Any) -> Reply:
    connection = await Connection.open(port)
    try:
        return await connection.post(path, payload, **options)
    finally:
        await connection.close()


def shown(reply: Reply) -> str:
    """The text of a completion, streamed or not."""
    events = reply.events() if reply.arrivals else [json.loads(reply.body)]
    return "".join(choice["text"] for event in events for choice in event["choices"])


def assert_it_answers(server: Server) -> None:
    reply = asyncio.run(asyncio.wait_for(ask(server.port, question("still here?")), 20))
    assert reply.status == 200
    assert shown(reply)


def test_survivors_of_64_clients_are_answered_as_if_alone(server: Server, team: Team) -> None:
    draw = random.Random(0)
    questions = [question(ids, draw.choice(IDS)) for ids in tiny.prompts(64, seed=3)]
    leaving = {at: draw.randint(1, NEW - 6) for at in draw.sample(range(64), 24)}  # so many events, then they hang up
    offer = Offer.of_team(team, "team", cache_limit="64MiB")
    settings = GenerationSettings(max_new_tokens=NEW)
    alone: dict[int, Completion] = {}
    for id in IDS:
        mine = [at for at in range(64) if questions[at]["model"] == id]
        found = offer[id].engine.generate([questions[at]["prompt"] for at in mine], settings)
        alone |= dict(zip(mine, found, strict=True))
    assert len({completion.text for completion in alone.values()}) > 32, "answers that are all alike would show nothing"

    async def one(at: int) -> Reply:
        await asyncio.sleep(draw.random() * 0.3)
        # of those who stay every third does not stream
        is_stream = at in leaving or at % 3 > 0
        return await ask(server.port, {**questions[at], "stream": is_stream}, leave_after=leaving.get(at))

    async def everybody() -> list[Reply]:
        return await asyncio.wait_for(asyncio.gather(*(one(at) for at in range(64))), 60)

    replies = asyncio.run(everybody())
    assert {reply.status for reply in replies} == {200}
    for at, reply in enumerate(replies):
        expected = alone[at]
        if at in leaving:
            assert expected.text.startswith(shown(reply))
        else:
            assert shown(reply) == expected.text, f"client {at} of {questions[at]['model']}"
            assert reply.is_done or not reply.arrivals
    assert any(not replies[at].is_done for at in leaving), "nobody left before the end"
    assert server.left() == {}


def test_who_leaves_frees_the_place_at_once(server: Server) -> None:
    """Answers of thousands of tokens fill every place; when their clients go, the next ones are written at once."""

    async def run() -> float:
        stay = [await Connection.open(server.port) for _ in range(16)]
        asked = question("on and on", max_tokens=2000, stream=True)
        streams = [asyncio.ensure_future(connection.post(COMPLETIONS, asked)) for connection in stay]
        while (await asyncio.to_thread(server.metrics))["fusionroute_sequences_running"] < 16:
            await asyncio.sleep(0.02)
        waiting = asyncio.ensure_future(ask(server.port, question("next")))
        await asyncio.sleep(0.3)
        assert not waiting.done(), "there was a place"
        assert not any(stream.done() for stream in streams), "nothing shows if places are free anyway"
        began = time.monotonic()
        for connection in stay:
            connection.writer.transport.abort()
        assert (await waiting).status == 200
        seconds = time.monotonic() - began
        await asyncio.gather(*streams, return_exceptions=True)
        return seconds

    assert asyncio.run(asyncio.wait_for(run(), 60)) < 5  # not the minute that the others would have taken
    assert server.left(2) == {}


def test_a_thousand_connections_at_once(server: Server) -> None:
    """Everybody gets an answer: their own, or to come again. None is left hanging, and the server goes on."""

    async def everybody() -> list[Reply]:
        connections = await asyncio.gather(*(Connection.open(server.port) for _ in range(1000)))
        posts = (connection.post(COMPLETIONS, question("me too", max_tokens=4)) for connection in connections)
        try:
            return await asyncio.wait_for(asyncio.gather(*posts), 40)
        finally:
            await asyncio.gather(*(connection.close() for connection in connections))

    replies = asyncio.run(everybody())
    statuses = Counter(reply.status for reply in replies)
    assert set(statuses) <= {200, 429, 503}
    assert statuses[200] >= 16 + 128, statuses
    assert len({shown(reply) for reply in replies if reply.status == 200}) == 1
    for reply in replies:
        if reply.status != 200:
            assert int(reply.headers["retry-after"]) >= 1
            assert json.loads(reply.body)["error"]["code"] in ("rate_limit_exceeded", "too_many_connections")
    assert_it_answers(server)
    assert server.left() == {}


@pytest.fixture(scope="module")
def impatient(folder: str) -> Iterator[Server]:
    limits = ("--body-timeout", "3", "--send-timeout", "2", "--max-connections", "40")
    with running_server(folder, "--cache-limit", "64MiB", *limits) as server:
        yield server
        assert server.left() == {}


def test_slow_clients_hold_nobody_up_and_are_dropped(impatient: Server) -> None:
    async def sends_byte_by_byte() -> tuple[Reply, float]:
        connection = await Connection.open(impatient.port)
        connection.writer.write(head(500))
        trickle = asyncio.ensure_future(_trickle(connection))
        reply = Reply()
        await connection._read_head(reply)
        at = time.monotonic()
        reply.body = await connection.reader.read()  # to the end: the server closes
        trickle.cancel()
        await connection.close()
        return reply, at

    async def sends_no_headers() -> None:
        connection = await Connection.open(impatient.port)
        connection.writer.write(b"POST /v1/comp")
        with contextlib.suppress(ConnectionError):
            assert await connection.reader.read() == b"", "there is nothing to answer"
        await connection.close()

    async def other() -> tuple[Reply, float]:
        return await ask(impatient.port, question("hello")), time.monotonic()

    async def run() -> None:
        slow = asyncio.gather(*(sends_byte_by_byte() for _ in range(10)))
        silent = asyncio.gather(*(sends_no_headers() for _ in range(10)))
        others = [await other() for _ in range(3)]
        assert {reply.status for reply, _ in others} == {200}
        late = await slow
        assert min(at for _, at in late) > others[0][1], "others waited for slow clients"
        for reply, _ in late:
            assert reply.status == 408
            assert json.loads(reply.body)["error"]["code"] == "request_timeout"
        await silent

    asyncio.run(asyncio.wait_for(run(), 40))


def test_who_reads_nothing_is_dropped(impatient: Server) -> None:
    """Megabytes are made for a client that takes none of them; when its time is over nobody writes for it any more."""
    wanted = {"logprobs": 20, "provenance": True, "candidates": 3}
    body = json.dumps(question("tell me", max_tokens=800, n=16, temperature=1, stream=True, **wanted)).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", impatient.port))
        client.sendall(head(len(body)) + body)
        seen, end = list[float](), time.monotonic() + 40
        while time.monotonic() < end and not (seen and seen[-1] == 0 < max(seen)):
            seen.append(impatient.metrics()["fusionroute_sequences_running"])
            assert asyncio.run(ask(impatient.port, question("hello"))).status == 200  # meanwhile, for others
        assert max(seen) >= 16, "it was never answered"
        assert seen[-1] == 0, "it is still written for"
        found = b""
        with contextlib.suppress(ConnectionError):
            while piece := client.recv(2**20):
                found += piece
    assert found.count(b"data: ") < 16 * 400, "it got everything, so nothing was shown"
    assert b"[DONE]" not in found


async def _trickle(connection: Connection) -> None:
    while not connection.writer.transport.is_closing():
        connection.writer.write(b" ")
        await asyncio.sleep(0.1)


def test_more_clients_than_may_connect_are_told_so(impatient: Server) -> None:
    async def run() -> tuple[Reply, Reply]:
        idle = [await Connection.open(impatient.port) for _ in range(60)]
        refused = await asyncio.wait_for(idle[-1].post(COMPLETIONS, question("x")), 10)
        for connection in idle:
            await connection.close()
        await asyncio.sleep(0.2)
        return refused, await ask(impatient.port, question("x"))

    refused, later = asyncio.run(run())
    assert refused.status == 503
    assert json.loads(refused.body)["error"]["code"] == "too_many_connections"
    assert int(refused.headers["retry-after"]) >= 1
    assert later.status == 200


@pytest.fixture(autouse=True)
def _answers_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in ("server", "impatient"):
        if name in request.fixturenames:
            assert_it_answers(request.getfixturevalue(name))
