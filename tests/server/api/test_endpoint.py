"""What both endpoints share: sizes of replies, refusals that the log explains, words for bad values."""

import asyncio
import json
import logging
from typing import Any

import pytest

import tiny_server
from fusionroute.server.api import endpoint, streaming
from fusionroute.server.api.endpoint import pieces
from fusionroute.server.worker import Worker

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
HELLO: dict[str, Any] = {"model": "tiny", "prompt": "hello", "temperature": 0}


@pytest.mark.parametrize("depth", [0, 1, 3, 5, 20])
def test_pieces_are_json(depth: int) -> None:
    told = {"a": [], "é": {}, "b": [1, -0.5, None, True, {"c": ["🙂", {"d": [[1], {"e": '"\\\n'}]}]}], "f": "x"}
    assert "".join(pieces(told, depth)) == json.dumps(told, separators=(",", ":"), ensure_ascii=False)
    with pytest.raises(ValueError, match="not JSON compliant"):
        "".join(pieces({"a": [float("nan")]}, depth))


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {"logprobs": True, "top_logprobs": 5, "provenance": True, "candidates": 3}),
        (TEXT, {"logprobs": 3, "echo": True, "provenance": True, "n": 2}),
    ],
)
def test_large_replies_are_the_small_ones(
    served: Any, monkeypatch: pytest.MonkeyPatch, path: str, more: dict[str, Any]
) -> None:
    def ask(**options: Any) -> str:
        body = (HI if path == CHAT else HELLO) | {"max_tokens": 8, **more, **options}
        reply = served.post(body, path)
        assert reply.status_code == 200
        return reply.text

    def choices(text: str) -> list[Any]:
        return json.loads(text)["choices"]

    def streamed(text: str) -> list[Any]:
        return [json.loads(line[6:])["choices"] for line in text.splitlines() if line.startswith("data: {")]

    small, stream = choices(ask()), streamed(ask(stream=True))
    threads = []
    monkeypatch.setattr(endpoint, "LARGE", 1)
    monkeypatch.setattr(streaming, "LARGE", 1)
    to_thread = asyncio.to_thread
    monkeypatch.setattr(asyncio, "to_thread", lambda *work: threads.append(work) or to_thread(*work))
    assert choices(ask()) == small
    assert len(threads) == 1, "it was written beside the loop"
    assert streamed(ask(stream=True)) == stream


@pytest.mark.parametrize(
    ("path", "more", "field"),
    [
        (CHAT, {"logprobs": True, "top_logprobs": 20}, "top_logprobs"),
        (CHAT, {"provenance": True, "candidates": 5, "stream": True}, "candidates"),
        (CHAT, {"provenance": True}, "provenance"),
        (TEXT, {"logprobs": 0, "prompt": ["x" * 100] * 4, "echo": True, "max_tokens": 1}, "logprobs"),
    ],
)
def test_who_asks_for_too_many_figures_is_told(
    served: Any, monkeypatch: pytest.MonkeyPatch, path: str, more: dict[str, Any], field: str
) -> None:
    body = (HI if path == CHAT else HELLO) | {"max_tokens": 90, **more}
    monkeypatch.setattr(endpoint, "MOST_TOLD", 89)
    reply = served.post(body, path)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == (field, "request_too_large")
    assert f"lower {field}, the answers' length or their number" in error["message"]
    monkeypatch.undo()
    assert served.post(body, path).status_code == 200
    assert served.post(HI | {"max_tokens": 90}).status_code == 200, "texts alone are never too much"


def test_ways_to_ask_without_reading(served: Any) -> None:
    for path in ("/health", "/version", "/v1/models", "/v1/models/tiny/math"):
        whole, head = served.http.get(path), served.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.content))
    assert served.http.head("/v1/models/nobody").status_code == 404


def test_a_dead_worker_is_told_and_ends_the_server(serve: Any, team: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> None:
        raise RuntimeError("a bug")

    with serve(tiny_server.offer(team)) as served:
        monkeypatch.setattr(type(served.server), "on_tick", _never)  # else it is gone before it can be asked
        monkeypatch.setattr(Worker, "_round", bug)
        assert served.post(HI).json()["error"]["code"] == "model_error"
        for reply in (served.http.get("/health"), served.post(HI)):
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unhealthy")
        monkeypatch.undo()
        tiny_server.wait_until(lambda: served.server.should_exit, "the server goes on")


async def _never(*_: Any) -> bool:
    return False


def log_lines(caplog: pytest.LogCaptureFixture) -> dict[str, dict[str, Any]]:
    """By the requests' ids."""
    lines = [json.loads(each.message) for each in caplog.records if each.name == "fusionroute.server"]
    return {line["id"]: line for line in lines if "id" in line}


def test_the_log_says_why_a_request_was_refused(
    serve: Any, served: Any, team: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="fusionroute.server")

    def line(reply: Any) -> dict[str, Any]:
        id = reply.headers["x-request-id"]
        tiny_server.wait_until(lambda: id in log_lines(caplog), "it is not in the log")
        return log_lines(caplog)[id]

    cases = [
        (served.post(HI | {"n": 99}), 400, None, "n", "tiny"),
        (served.post(HI | {"temperature": 5}), 400, None, "temperature", None),
        (served.post(HI | {"modle": "tiny" * 100}), 400, "unknown_parameter", "modle", None),
        (served.post(HI | {"model": "nobody"}), 404, "model_not_found", "model", None),
        (served.post(HI | {"messages": [{"role": "user", "content": "x" * 200}]}), 400, "context_length_exceeded",
         "messages", "tiny"),
        (served.http.get("/nowhere"), 404, "not_found", None, None),
        (served.http.post(CHAT, content="x" * 2**23), 413, "request_too_large", None, None),
    ]  # fmt: skip
    for reply, status, code, param, model in cases:
        assert reply.status_code == status
        told = line(reply)
        assert (told["status"], told.get("error"), told.get("param")) == (status, code, param)
        if model is not None:
            assert told["model"] == model
    with serve(tiny_server.offer(team), api_keys=["secret"]) as locked:
        assert line(locked.post(HI))["error"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (CHAT, HI | {"messages": []}, "messages is []; at least 1 needed"),
        (CHAT, HI | {"temperature": 5}, "temperature is 5; it must be at most 2"),
        (CHAT, HI | {"temperature": "warm"}, 'temperature is "warm"; a number is needed'),
        (CHAT, HI | {"n": 0}, "n is 0; it must be at least 1"),
        (CHAT, HI | {"n": 1.5}, "n is 1.5; a whole number is needed"),
        (CHAT, HI | {"stream": "yes"}, 'stream is "yes"; true or false is needed'),
        (CHAT, HI | {"top_p": 0}, "top_p is 0; it must be greater than 0"),
        (CHAT, HI | {"user": "x" * 1000}, f'user is "{"x" * 59} …; at most 512 characters allowed'),
        (CHAT, HI | {"messages": [{"role": "me", "content": "hi"}]},
         "messages[0].role is \"me\"; allowed: 'system', 'developer', 'user' or 'assistant'"),
        (CHAT, [1, 2], "the body is a list of 2; an object is needed"),
        (CHAT, HI | {"stream_options": [1]}, "stream_options is a list of 1; an object is needed"),
        (TEXT, HELLO | {"logprobs": True}, "logprobs is true; a whole number is needed"),
        (TEXT, HELLO | {"seed": 2**63}, "seed is 9223372036854775808; it must be less than 9223372036854775808"),
    ],
)  # fmt: skip
def test_bad_values_are_told_in_our_words(served: Any, path: str, body: Any, message: str) -> None:
    reply = served.post(body, path)
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, message)


def test_other_hosts_are_refused_where_nobody_needs_a_key(serve: Any, served: Any, team: Any) -> None:
    other = {"host": "rebound.example"}
    refused = served.post(HI, headers=other)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "unknown_host")
    assert served.http.get("/v1/models", headers={"host": "localhost:80"}).status_code == 200
    with serve(tiny_server.offer(team), allowed_hosts=["rebound.example"]) as named:
        assert named.http.get("/v1/models", headers=other).status_code == 200
    with serve(tiny_server.offer(team), "secret", api_keys=["secret"]) as locked:
        key = {"authorization": "Bearer secret"}
        assert locked.http.get("/v1/models", headers=other | key).status_code == 200
