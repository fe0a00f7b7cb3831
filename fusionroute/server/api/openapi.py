"""What /openapi.json says: requests and replies as they are, errors included."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fusionroute.server.api import replies
from fusionroute.server.api.schemas import ChatRequest, CompletionRequest

REFUSALS = {
    400: "Something in the request cannot be followed; `param` names it.",
    401: "No API key, or a wrong one.",
    403: "The server does not answer as the host that was asked for.",
    404: "No such model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    429: "Too many requests wait; Retry-After says when to try again.",
    500: "A model failed.",
    503: "The server is shutting down, its worker has died, or too many clients are connected.",
    504: "The time that a request may take is over.",
}
REFERENCE = "#/components/schemas/{model}"


def request_body(schema: type[BaseModel]) -> dict[str, Any]:
    """What FastAPI says of an endpoint that reads its body itself."""
    content = {"application/json": {"schema": {"$ref": REFERENCE.format(model=schema.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def told(reply: Any, *refusals: int, events: Any = None) -> dict[int | str, dict[str, Any]]:
    """The replies of an endpoint: ``reply`` if it succeeds (None: text), or server-sent events if asked for those."""
    success: dict[str, Any] = (
        {"description": "Success"} if reply is None else {"description": "Success", "model": reply}
    )
    if events is not None:
        said = f"With `stream`: events whose data is a {events.__name__} or an ErrorReply, the last one's [DONE]."
        data = {"type": "string", "contentMediaType": "application/json", "description": said}
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        success["content"] = {"text/event-stream": {"schema": event}}
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": REFUSALS[status], "model": replies.ErrorReply} for status in refusals
    }
    return {200: success} | errors


def describe(app: FastAPI, *, needs_key: bool) -> None:
    """Let the application describe itself with the requests' schemas, which FastAPI does not see."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app, needs_key=needs_key)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _described(app: FastAPI, *, needs_key: bool) -> dict[str, Any]:
    described: dict[str, Any] = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, requests = models_json_schema(
        [(ChatRequest, "validation"), (CompletionRequest, "validation")], ref_template=REFERENCE
    )
    described["components"]["schemas"].update(requests["$defs"])
    if needs_key:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
    return described
