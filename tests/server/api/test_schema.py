"""/openapi.json says what the server does: made-up requests by the description never make it fail."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import tiny_server

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
QUICKLY = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def brief(serve: Any, team: Any) -> Iterator[Any]:
    """A server whose answers are short, since nobody reads them here."""
    with serve(tiny_server.offer(team), max_new_tokens=3, max_n=2) as running:
        yield running


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_requests_by_the_description(brief: Any, mode: GenerationMode) -> None:
    statuses = Counter[str]()
    # schemathesis' own tie to pytest needs another pytest, so its operations are asked one by one
    for found in schemathesis.openapi.from_url(f"{brief.url}/openapi.json").get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing there could be wrong

        @QUICKLY
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = "tiny"  # else all of them ask for models that are not there
                if mode is GenerationMode.POSITIVE:
                    # what depends on another field is left out, else most are refused
                    case.body |= {"stream": sum(statuses.values()) % 2 == 0, "max_tokens": 2}
                    for field in ("max_completion_tokens", "stream_options", "candidates", "best_of", "n"):
                        case.body.pop(field, None)
            reply = case.call_and_validate(checks=CHECKS)
            statuses[f"{case.path} {reply.status_code} {reply.headers['content-type'][0].partition(';')[0]}"] += 1

        ask()
    replies = ["200 application/json", "200 text/event-stream"]
    for path in ("/v1/chat/completions", "/v1/completions"):
        for reply in replies if mode is GenerationMode.POSITIVE else ["400 application/json"]:
            assert statuses[f"{path} {reply}"], f"nothing of what this is about was asked: {statuses}"
    brief.wait_until_idle()


def test_the_description_is_whole(served: Any) -> None:
    described = served.http.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{id}", "/health", "/version", "/metrics",
    }  # fmt: skip
    text = json.dumps(described)
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names <= described["components"]["schemas"].keys(), "every reference leads somewhere"
    assert {"ChatRequest", "CompletionRequest", "ChatReply", "ErrorReply"} <= names
    fields = described["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"model", "messages", "stream", "seed", "provenance", "candidates", "top_k"} <= fields.keys()
    assert described["components"]["schemas"]["ChatRequest"]["additionalProperties"] is False
