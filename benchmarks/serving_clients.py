"""What the serving benchmarks share: a server in a process of its own, and clients that cost little beside it.

`running_server` starts ``fusionroute serve`` and stops it as an operator would; `Connection` is one kept-alive
connection that speaks just enough HTTP to stream an answer and to say when each piece of it came.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import psutil

HOST = "127.0.0.1"
RANDOM = "random"
TEAM_HELP = f"a trained zoo team; benchmarks/zoo_comparison.py makes the default; {RANDOM!r} makes a tiny one, to try"
STARTING = 300.0  # seconds in which a server must have loaded its models
STOPPING = 60.0
GAUGES = tuple(
    f"fusionroute_{name}" for name in ("requests_running", "sequences_waiting", "sequences_running", "cache_rows")
)


class Process(Protocol):
    """What is asked of a server's process: that of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class Server:
    """A server that answers, in a process of its own."""

    port: int
    process: Process

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=30) as reply:
            return str(reply.read().decode())

    def model_ids(self) -> list[str]:
        return [each["id"] for each in json.loads(self.get("/v1/models"))["data"]]

    def metrics(self) -> dict[str, float]:
        """Every sample of ``/metrics`` by its name and labels, as they stand there."""
        lines = (line for line in self.get("/metrics").splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def rss(self) -> int:
        """Bytes of memory that the server's process occupies."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def left(self, seconds: float = 5.0) -> dict[str, float]:
        """Gauges that are not at zero although everybody has gone, after some seconds at most."""
        end = time.monotonic() + seconds
        while True:
            left = {name: value for name, value in self.metrics().items() if name.startswith(GAUGES) and value}
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.05)

    def stop(self) -> int:
        """SIGTERM; the code with which it ends."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOPPING)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(
    location: str, *options: str, threads: int = 1, log: Path | None = None, ends_with: int = 0
) -> Iterator[Server]:
    """``fusionroute serve LOCATION`` on a free port, its stderr in ``log``; SIGTERM in the end, if it still runs."""
    port = free_port()
    with (log or Path(os.devnull)).open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "fusionroute", "serve", location, "--port", str(port), *options],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    with stopped_in_the_end(Server(port, process), ends_with) as server:
        yield server


@contextmanager
def stopped_in_the_end(server: Server, ends_with: int = 0) -> Iterator[Server]:
    """``server`` once it answers. Raises `RuntimeError` if it does not end with the code ``ends_with``."""
    process = server.process
    try:
        _wait_for(server)
        yield server
        code = process.poll() if process.poll() is not None else server.stop()
        if code != ends_with:
            raise RuntimeError(f"the server ended with code {code}, not {ends_with}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_for(server: Server) -> None:
    end = time.monotonic() + STARTING
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with code {server.process.poll()} before it answered")
        try:
            server.get("/health")
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"no server answered within {STARTING:.0f} s")


@dataclass
class Reply:
    """What came of one request. Times are seconds since it was sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)  # of a stream: each event and when it came
    seconds: float = 0.0

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(data) for _, data in self.arrivals if data != b"[DONE]"]

    @property
    def is_done(self) -> bool:
        return bool(self.arrivals) and self.arrivals[-1][1] == b"[DONE]"

    @property
    def completion_tokens(self) -> int:
        """As the server counts them; a stream must have asked for usage."""
        counted = [event["usage"] for event in self.events() if event.get("usage")] if self.arrivals else []
        usage = counted[-1] if counted else json.loads(self.body)["usage"]
        return int(usage["completion_tokens"])

    def token_times(self) -> list[float]:
        """When each event that shows text came."""
        return [at for at, data in self.arrivals if data != b"[DONE]" and _shown(json.loads(data))]


def _shown(event: dict[str, Any]) -> str:
    return "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in event.get("choices", ())
    )


class Connection:
    """One kept-alive connection to a server on this machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection(HOST, port, limit=2**20))

    async def close(self) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)

    async def post(self, path: str, payload: Any, *, leave_after: int | None = None) -> Reply:
        """Send ``payload`` (bytes as they are, all else as JSON) and read the reply.

        Args:
            leave_after: hang up once so many events of the stream have come.
        """
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        began = time.perf_counter()
        self.writer.write(head.encode() + b"\r\n\r\n" + body)
        await self.writer.drain()
        reply = Reply()
        await self._read_head(reply)
        async for piece in self._pieces(reply):
            self._take(reply, piece, time.perf_counter() - began)
            if leave_after is not None and len(reply.arrivals) >= leave_after:
                self.writer.transport.abort()
                break
        reply.seconds = time.perf_counter() - began
        return reply

    async def _read_head(self, reply: Reply) -> None:
        status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        reply.status = int(status.split()[1])
        reply.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    async def _pieces(self, reply: Reply) -> Any:
        if reply.headers.get("transfer-encoding") != "chunked":
            yield await self.reader.readexactly(int(reply.headers.get("content-length", 0)))
            return
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    def _take(self, reply: Reply, piece: bytes, at: float) -> None:
        reply.body += piece
        if "event-stream" not in reply.headers.get("content-type", ""):
            return
        *events, reply.body = reply.body.split(b"\n\n")
        reply.arrivals += [(at, event[6:]) for event in events if event.startswith(b"data: ")]


def needs_team(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse a ``--team`` that is none before anything is measured."""
    if options.team != RANDOM and not (Path(options.team) / "team.json").exists():
        parser.error(f"no team at {options.team}; train one with benchmarks/zoo_comparison.py, or give --team")


@contextmanager
def some_team(location: str, write_random: Callable[[Path, str], None]) -> Iterator[str]:
    """The folder of the team that ``--team`` asks for, which ``write_random`` makes for as long as it is used."""
    if location != RANDOM:
        yield location
        return
    with tempfile.TemporaryDirectory() as folder:
        write_random(Path(folder) / "team", "tiny")
        yield str(Path(folder) / "team")
