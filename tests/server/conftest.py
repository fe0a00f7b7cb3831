"""A real server on 127.0.0.1 in front of a tiny team: uvicorn in a thread, any free port."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

import tiny
import tiny_server
from fusionroute import Team
from fusionroute.server.api.app import create_app
from fusionroute.server.metrics import Metrics
from fusionroute.server.offer import Offer
from fusionroute.server.run import Server, bind, make_server
from fusionroute.server.settings import ServerSettings
from fusionroute.server.worker import Worker


@dataclass
class Served:
    """A running server, and how to ask it."""

    url: str
    worker: Worker
    server: Server
    openai: openai.OpenAI
    http: httpx.Client

    def post(self, body: Any, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
        return self.http.post(path, json=body, **more)

    def wait_until_idle(self) -> None:
        """Nothing runs, waits or keeps a row of a cache."""
        tiny_server.wait_until(lambda: not any(tiny_server.gauges(self.worker).values()), "something is still held")


Serve = Callable[..., AbstractContextManager[Served]]


@contextmanager
def serving(offer: Offer, key: str = "none", **settings: Any) -> Iterator[Served]:
    parsed = ServerSettings.parse(settings)
    with bind("127.0.0.1", 0) as listening:
        worker = Worker(offer, parsed, Metrics())
        server = make_server(create_app(worker, parsed), worker, parsed)
        ready = threading.Event()
        server.on_ready = ready.set
        worker.start()
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            assert ready.wait(30), "the server did not start"
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with (
                openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as client,
                httpx.Client(base_url=url, timeout=60) as http,
            ):
                yield Served(url, worker, server, client, http)
        finally:
            worker.begin_stopping(0)
            server.drain()
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def serve() -> Serve:
    """``with serve(offer, **settings) as served``"""
    return serving


@pytest.fixture(scope="package")
def team() -> Team:
    return tiny.team(prompt="chat_template")


@pytest.fixture(scope="package")
def served(team: Team) -> Iterator[Served]:
    """Of the tiny team, with defaults but for what makes tests quick. Tests leave it as it was."""
    with serving(tiny_server.offer(team), max_new_tokens=100, max_n=4) as running:
        yield running
