"""From an exception to OpenAI's error reply. What a client reads never holds a stack trace or a path."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from fusionroute.config import nearest
from fusionroute.errors import FusionRouteError, PromptError, RequestTooLargeError, SettingsError
from fusionroute.server.api.schemas import UNSUPPORTED
from fusionroute.server.logs import entry
from fusionroute.server.ticket import SHUTDOWN, TIMEOUT
from fusionroute.server.worker import BusyError, StoppingError, WorkerDiedError

INVALID = "invalid_request_error"
LONGEST_MESSAGE, LONGEST_VALUE = 1000, 60
WANTED = {  # where a field may be several things, no one of pydantic's complaints says all of them
    "prompt": "a text, a list of texts, a list of token ids or a list of such lists is needed, none of them empty",
    "stop": "a text or a list of up to 16 texts is needed, none of them empty",
    "content": "a text or a list of parts of type 'text' is needed",
}


NEEDED = {  # by pydantic's name for what is wrong with a value
    "string_type": "a text is needed",
    "bool_type": "true or false is needed",
    "int_type": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "finite_number": "a finite number is needed",
    "list_type": "a list is needed",
    "dict_type": "an object is needed",
    "model_type": "an object is needed",
    "model_attributes_type": "an object is needed",
    "none_required": "only null is allowed",
    "literal_error": "allowed: {expected}",
    "greater_than": "it must be greater than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be less than {lt}",
    "less_than_equal": "it must be at most {le}",
    "too_short": "at least {min_length} needed",
    "too_long": "at most {max_length} allowed",
    "string_too_short": "at least {min_length} characters needed",
    "string_too_long": "at most {max_length} characters allowed",
}


class ApiError(FusionRouteError):
    """A reply that is an error, in OpenAI's terms.

    Args:
        param: the field that is to blame, if one is.
        code: what a program may tell it by.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.type, self.param, self.code = status, type, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        error = {"message": _plain(str(self)), "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | {"param": None if self.param is None else _plain(self.param)}}

    def response(self) -> JSONResponse:
        return Refusal(self)


class Refusal(JSONResponse):
    """An `ApiError` as a reply, whoever sends it; the log says why it was."""

    def __init__(self, error: ApiError):
        super().__init__(error.body(), error.status, error.headers)
        self._why = {"error": error.code, "param": error.param}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        entry(scope).update({key: _shortened(value) for key, value in self._why.items() if value is not None})
        await super().__call__(scope, receive, send)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unknown_model(id: str, offered: list[str]) -> ApiError:
    known = ", ".join(offered)
    return ApiError(
        404, f"The model {id!r} does not exist; this server offers: {known}", param="model", code="model_not_found"
    )


def too_long(tokens: int, limit: int, param: str, *, of: str = "context") -> ApiError:
    """A prompt of ``tokens`` that does not fit; of a context of ``limit`` one place must be left to write."""
    left = ", and one must be left to write" if of == "context" else ""
    return bad_request(
        f"This model's maximum {of} length is {limit} tokens. However, your {param} resulted in {tokens} tokens{left}. "
        f"Please reduce the length of the {param}.",
        param,
        "context_length_exceeded",
    )


def of_answer(error: str) -> ApiError:
    """What an `Update`'s ``error`` is to a client."""
    if error == TIMEOUT:
        return ApiError(
            504, "The request took longer than this server's time limit.", type="timeout_error", code="timeout"
        )
    if error == SHUTDOWN:
        return shutting_down()
    return ApiError(500, error, type="server_error", code="model_error")


def shutting_down() -> ApiError:
    return ApiError(503, "The server is shutting down.", type="server_error", code="shutting_down")


def unhealthy() -> ApiError:
    return ApiError(
        503, "The server's worker has died; it has to be started again.", type="server_error", code="unhealthy"
    )


def of_exception(error: Exception) -> ApiError:
    """The reply for whatever a handler raises."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return ApiError(
            429,
            "The server is busy and its queue is full; try again later.",
            type="rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(error.retry_after)},
        )
    if isinstance(error, StoppingError):
        return shutting_down()
    if isinstance(error, WorkerDiedError):
        return unhealthy()
    if isinstance(error, RequestTooLargeError):
        return bad_request(str(error), code="request_too_large")
    if isinstance(error, (PromptError, SettingsError)):
        return bad_request(str(error))
    if isinstance(error, HTTPException):
        return _of_http(error)
    return ApiError(500, "The server failed on this request; its log says why.", type="server_error", code="internal")


def of_validation(error: ValidationError, schema: type[BaseModel]) -> ApiError:
    """Of several mistakes the first field's is told; where a field may be several things, what came nearest."""
    problems = error.errors(include_url=False)
    first = problems[0]["loc"][:1]
    problem = max((p for p in problems if p["loc"][:1] == first), key=lambda p: len(p["loc"]))
    if problem["type"] == "json_invalid":
        return bad_request(f"The body is not valid JSON: {problem['msg'].removeprefix('Invalid JSON: ')}")
    is_extra = problem["type"] == "extra_forbidden"
    param, names = _place(problem["loc"], is_extra=is_extra)
    known = names[:-1] if is_extra else names
    if unsupported := next((name for name in known if name in UNSUPPORTED), None):
        param = param[: param.index(unsupported) + len(unsupported)]
        return bad_request(
            f"{unsupported} is not supported by this server; leave it out", param, "unsupported_parameter"
        )
    if is_extra:
        message = nearest(names[-1], schema.model_fields) if len(names) == 1 else f"unknown option {param!r}"
        return bad_request(message, param, "unknown_parameter")
    if names[-2:] == ["content", "type"] or (problem["type"] == "missing" and "content" in names[:-1]):
        return bad_request(f"{param}: only parts of type 'text' are supported", param, "unsupported_value")
    if sum(p["loc"][:1] == first for p in problems) > 1 and names[-1] in WANTED:
        return bad_request(f"{param}: {WANTED[names[-1]]}", param)
    if problem["type"] == "missing":
        return bad_request(f"Missing required parameter: {param!r}", param, "missing_required_parameter")
    needed = NEEDED[problem["type"]].format(**_bounds(problem)) if problem["type"] in NEEDED else problem["msg"]
    return bad_request(f"{param or 'the body'} is {_shown(problem['input'])}; {needed}", param or None)


def add_handlers(app: FastAPI) -> None:
    """Replies for what handlers raise, and for what the routing itself refuses (404, 405)."""
    for kind in (FusionRouteError, HTTPException):
        app.add_exception_handler(kind, _reply)


async def _reply(request: Request, error: Exception) -> JSONResponse:
    return of_exception(error).response()


def _of_http(error: HTTPException) -> ApiError:
    known = {
        404: ("There is nothing at this address; see /openapi.json for what there is.", "not_found"),
        405: ("This address does not take that method.", "method_not_allowed"),
    }
    message, code = known.get(error.status_code, (str(error.detail), None))
    return ApiError(error.status_code, message, code=code, headers=error.headers)


def _place(location: tuple[int | str, ...], *, is_extra: bool) -> tuple[str, list[str]]:
    """``messages[0].content`` of pydantic's location, without the kinds of a union; and the names alone."""
    text, names = "", list[str]()
    for at, part in enumerate(location, 1):
        if isinstance(part, int):
            text += f"[{part}]"
        elif (part.isidentifier() and part not in ("str", "int")) or (is_extra and at == len(location)):
            text, names = f"{text}.{part}" if text else part, [*names, part]
    return text, names


def _bounds(problem: Mapping[str, Any]) -> dict[str, Any]:
    bounds = problem.get("ctx", {}).items()
    return {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in bounds}


def _shown(value: Any) -> str:
    """What came as JSON, or its beginning."""
    if isinstance(value, (list, dict)) and value:
        return f"a list of {len(value)}" if isinstance(value, list) else f"an object of {len(value)}"
    return _shortened(
        json.dumps(value[:LONGEST_VALUE] if isinstance(value, str) else value, ensure_ascii=False, default=str)
    )


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} …"


def _plain(text: str) -> str:
    """``text`` that JSON can hold, and not all of it if somebody sent very much."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} …"


def far_too_long(least: int, limit: int, param: str, *, of: str = "context") -> ApiError:
    """`too_long` for a prompt of which nobody has seen the end."""
    known = too_long(least, limit, param, of=of)
    return bad_request(str(known).replace("resulted in", "resulted in at least"), param, known.code)
