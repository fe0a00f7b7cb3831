"""The process: socket, models, worker, uvicorn; and how all of it ends when it is told to."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from fusionroute.errors import SettingsError
from fusionroute.models.loading import Dtype
from fusionroute.server.api.app import create_app
from fusionroute.server.api.security import CONNECTION
from fusionroute.server.logs import logger
from fusionroute.server.metrics import Metrics
from fusionroute.server.offer import Offer
from fusionroute.server.settings import ServerSettings
from fusionroute.server.worker import DIED, Worker, WorkerDiedError

LAST_WORDS = 5.0  # seconds in which clients may take what is left for them when everything else has ended
OTHER_FILES = 256
Announce = Callable[[str, list[str]], None]


def serve(
    location: str,
    settings: ServerSettings,
    *,
    device: str | None = None,
    dtype: Dtype = None,
    announce: Announce = lambda address, ids: None,
) -> None:
    """Serve a team or an ensemble until the process is told to stop (SIGTERM or Ctrl-C; a second time: at once).

    Args:
        location: a team's folder or hub id, or an ensemble file.
        announce: called with the address and the model ids once requests are answered.

    Raises:
        SettingsError: there is nowhere to listen; told before any model is loaded.
        WorkerDiedError: it has ended because nobody would be answered any more.
        FusionRouteError: as `Offer.open` for what cannot be loaded.
    """
    allow_files(settings.max_connections)
    with bind(settings.host, settings.port) as listening:
        offer = Offer.open(
            location,
            settings.name,
            device=device,
            dtype=dtype,
            max_batch=settings.max_batch,
            cache_limit=settings.cache_limit,
            speculation=settings.speculation,
            prefix_reuse=settings.prefix_reuse,
            prefill_chunk=settings.prefill_chunk,
        )
        worker = Worker(offer, settings, Metrics())
        server = make_server(create_app(worker, settings), worker, settings)
        server.on_ready = lambda: announce(_address(listening), list(offer))
        log_to_stderr()
        worker.start()
        try:
            server.run(sockets=[listening])
        finally:
            worker.stop(0)
        if worker.has_died:
            raise WorkerDiedError(DIED)


def make_server(app: FastAPI, worker: Worker, settings: ServerSettings) -> "Server":
    """A server that is not yet running; the worker is the caller's to start."""
    config = uvicorn.Config(
        app,
        http=connection_class(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(LAST_WORDS),
    )
    return Server(config, worker, settings.grace)


class Server(uvicorn.Server):
    """Told to stop, it lets the worker finish first: meanwhile it answers, and new requests hear that it stops."""

    def __init__(self, config: uvicorn.Config, worker: Worker, grace: float):
        super().__init__(config)
        self.worker, self.grace = worker, grace
        self.on_ready: Callable[[], None] = lambda: None
        self._is_told = False
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()

    def drain(self) -> None:
        """Begin to stop. From any thread, and from a signal's handler: so nothing is locked here."""
        self._is_told = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._is_told:
            os._exit(128 + sig)  # asked twice: whatever a model is doing is not waited for
        self.drain()

    async def on_tick(self, counter: int) -> bool:
        if self._is_told and self._draining is None:
            logger.info('{"event": "stopping", "grace": %s}', self.grace)
            self._draining = asyncio.create_task(asyncio.to_thread(self.worker.stop, self.grace))
        if self.worker.has_died or (self._draining is not None and self._draining.done()):
            self.should_exit = True
        return await super().on_tick(counter)


class Connection(H11Protocol):
    """Uvicorn's, made to let go of clients that begin a request and do not go on, and to say when they are too many."""

    patience: float
    most: int

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, CONNECTION: self}
        self._head_is_due: asyncio.TimerHandle | None = self.loop.call_later(self.patience, self._give_up)

    def data_received(self, data: bytes) -> None:
        if self._is_idle and self._head_is_due is None:
            self._head_is_due = self.loop.call_later(self.patience, self._give_up)
        super().data_received(data)
        if not self._is_idle:
            self._forget_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def abort(self) -> None:
        self.transport.abort()

    @property
    def is_crowded(self) -> bool:
        return len(self.connections) > self.most

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _give_up(self) -> None:
        self._head_is_due = None
        if self._is_idle:
            self.abort()

    def _forget_head(self) -> None:
        if self._head_is_due is not None:
            self._head_is_due.cancel()
            self._head_is_due = None


def connection_class(settings: ServerSettings) -> type[Connection]:
    """Uvicorn makes connections of a class, so what they need to know stands there."""
    return type(
        "LimitedConnection", (Connection,), {"patience": settings.body_timeout, "most": settings.max_connections}
    )


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet, so that nobody connects before there is somebody to answer.

    Raises:
        SettingsError: the address is taken, not this machine's, or unknown.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; name another with --host or --port"
        ) from None
    return listening


def allow_files(connections: int) -> None:
    """Every connection is an open file, and many systems allow a process a thousand unless it asks for more."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # where there is no such limit, or no way to move it
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = connections + OTHER_FILES
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def log_to_stderr() -> None:
    """The log is lines of JSON on stderr; uvicorn's own says only what went wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
