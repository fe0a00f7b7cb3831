"""The application: endpoints, what each may answer, and what stands before them all."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from fusionroute.environment import versions
from fusionroute.server.api import replies
from fusionroute.server.api.chat import chat_completions
from fusionroute.server.api.completions import completions
from fusionroute.server.api.errors import add_handlers, of_exception, shutting_down, unhealthy, unknown_model
from fusionroute.server.api.intake import Intake
from fusionroute.server.api.openapi import REFUSALS, describe, request_body, told
from fusionroute.server.api.pages import add_pages
from fusionroute.server.api.schemas import ChatRequest, CompletionRequest
from fusionroute.server.api.security import KnownHost, LimitedBody, NeedsKey, NotCrowded, TimedSending
from fusionroute.server.logs import Logged
from fusionroute.server.settings import ServerSettings
from fusionroute.server.worker import Worker

THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


def create_app(worker: Worker, settings: ServerSettings) -> FastAPI:
    """An ASGI application over a worker, which is the caller's to start and to stop."""
    app = FastAPI(
        title="fusionroute",
        version=versions()["fusionroute"],
        docs_url=None,  # both pages load from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        middleware=_middleware(worker, settings),
    )
    app.state.intake = Intake(worker, settings)
    app.state.created = replies.now()
    _add_endpoints(app)
    add_handlers(app)
    describe(app, needs_key=bool(settings.api_keys))
    if settings.playground:
        add_pages(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.intake.close()


def _middleware(worker: Worker, settings: ServerSettings) -> list[Middleware]:
    """The outermost first."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )
    hosts = Middleware(KnownHost, hosts=settings.allowed_hosts)
    is_open_here = not settings.api_keys and settings.host in THIS_MACHINE
    return [
        Middleware(Logged, metrics=worker.metrics, refuse=lambda error: of_exception(error).response()),
        Middleware(TimedSending, seconds=settings.send_timeout),
        *([hosts] if settings.allowed_hosts or is_open_here else []),
        *([cors] if settings.cors else []),
        Middleware(NotCrowded),
        Middleware(NeedsKey, keys=settings.api_keys),
        Middleware(LimitedBody, most=settings.max_body, seconds=settings.body_timeout),
    ]


def _add_endpoints(app: FastAPI) -> None:
    app.add_api_route(
        "/v1/chat/completions",
        chat_completions,
        methods=["POST"],
        openapi_extra=request_body(ChatRequest),
        responses=told(replies.ChatReply, *REFUSALS, events=replies.ChatChunk),
    )
    app.add_api_route(
        "/v1/completions",
        completions,
        methods=["POST"],
        openapi_extra=request_body(CompletionRequest),
        responses=told(replies.TextReply, *REFUSALS, events=replies.TextReply),
    )
    for path, endpoint, said in (
        ("/v1/models", models, told(replies.ModelList, 401, 403, 503)),
        ("/v1/models/{id:path}", one_model, told(replies.Model, 401, 403, 404, 503)),
        ("/health", health, told(replies.Health, 503)),
        ("/version", version, told(replies.Version, 403)),
    ):
        app.add_api_route(path, endpoint, responses=said)
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/metrics", metrics, response_class=PlainTextResponse, responses=told(None, 401, 403, 503))


async def models(request: Request) -> JSONResponse:
    """Every model id on offer; the first is the whole team or ensemble."""
    state = request.app.state
    data = [replies.model(offered, state.created) for offered in state.intake.offer.values()]
    return JSONResponse({"object": "list", "data": data})


async def one_model(request: Request, id: str) -> JSONResponse:
    """One model id."""
    state = request.app.state
    if id not in state.intake.offer:
        raise unknown_model(id, list(state.intake.offer))
    return JSONResponse(replies.model(state.intake.offer[id], state.created))


async def health(request: Request) -> JSONResponse:
    """Whether requests are taken."""
    worker: Worker = request.app.state.intake.worker
    if worker.has_died:
        raise unhealthy()
    if worker.is_stopping:
        raise shutting_down()
    return JSONResponse({"status": "ok"})


async def version() -> JSONResponse:
    """Of fusionroute."""
    return JSONResponse({"version": versions()["fusionroute"]})


async def metrics(request: Request) -> Response:
    """In the text format of Prometheus."""
    content, kind = request.app.state.intake.worker.metrics.render()
    return Response(content, media_type=kind)
