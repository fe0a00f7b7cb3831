"""How requests come in: nobody waits long for another's prompt, nobody is read for who has left; and what is echoed."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_server
import tiny_tokenizers
from fusionroute.models.vocabulary.ends import control_tokens
from fusionroute.server.api import intake as intake_module
from fusionroute.server.api.intake import Intake
from fusionroute.server.api.prompts import LAST_WORD, echo_of, for_completion
from fusionroute.server.api.schemas import CompletionRequest
from fusionroute.server.api.security import ClientGone
from fusionroute.server.settings import ServerSettings

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
LARGE = "12+34=46 and so on " * 215_000  # nearly 4 MiB


def intake_of(served: Any) -> Intake:
    found: Intake = served.server.config.app.state.intake
    return found


@contextmanager
def blocked(served: Any) -> Iterator[None]:
    """While the tokeniser is busy."""
    free, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        free.wait(60)

    intake_of(served)._tokeniser.submit(hold)
    assert begun.wait(10)
    try:
        yield
    finally:
        free.set()


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def waits(served: Any, number: int = 1) -> None:
    tiny_server.wait_until(lambda: intake_of(served)._waiting == number)


def error_of(reply: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()["error"]
    return found


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"model": "tiny", "prompt": LARGE}),
        ("/v1/completions", {"model": "tiny", "prompt": ["x", LARGE]}),
        ("/v1/completions", {"model": "tiny", "prompt": [7] * 1_000_000}),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": LARGE}]}),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "x" * 100}] * 20_000}),
    ],
    ids=["text", "list", "ids", "message", "messages"],
)
def test_a_prompt_that_cannot_fit_is_not_read_to_its_end(served: Any, path: str, asked: Any) -> None:
    body = json.dumps(asked).encode()
    begun = time.process_time()  # of the server too, which runs in this process
    reply = served.http.post(path, content=body, headers={"content-type": "application/json"})
    assert time.process_time() - begun < 1.5
    assert reply.status_code == 400
    assert error_of(reply)["code"] == "context_length_exceeded"
    is_known = path == "/v1/completions" and asked["prompt"][0] == 7
    assert ("at least" in error_of(reply)["message"]) is not is_known


LETTERS = st.text(st.sampled_from(" \n\tabcdeé世界🙂ح👨‍👩‍👧<s>|"), max_size=12)
TEXTS = st.lists(
    st.one_of(
        LETTERS,
        st.sampled_from(tiny_tokenizers.TEXTS),
        st.builds(lambda text, n: text * n, LETTERS, st.integers(1, 300)),
    ),
    max_size=5,
).map("".join)


@pytest.mark.parametrize("family", tiny_tokenizers.ALL)
@settings(max_examples=25)
@given(text=TEXTS, share=st.floats(0, 1))
def test_a_texts_beginning_has_no_more_tokens_than_the_text(family: str, text: str, share: float) -> None:
    """What the refusal relies on, with every manner of tokenizer."""
    tokenizer = tiny_tokenizers.ALL[family]()
    beginning = tokenizer(text[: round(share * len(text))], add_special_tokens=False).input_ids
    assert len(beginning) - LAST_WORD <= len(tokenizer(text).input_ids)


def test_a_list_is_not_read_on_for_who_has_left(served: Any) -> None:
    asked = CompletionRequest(model="tiny", prompt=["a", "b", "c", "d"])
    answers = iter([True, True, False])
    with pytest.raises(ClientGone):
        for_completion(asked, served.worker.offer, ServerSettings(), lambda: next(answers))


def test_who_leaves_while_it_waits_is_not_read(
    served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[bytes] = []
    parse = intake_module.parse
    monkeypatch.setattr(intake_module, "parse", lambda body, schema: (read.append(body), parse(body, schema))[1])
    with blocked(served), caplog.at_level("INFO", "fusionroute.server"):
        with pytest.raises(httpx.ReadTimeout):
            served.post(CHAT, timeout=0.2)
        waits(served, 0)
        tiny_server.wait_until(lambda: '"status": 499' in caplog.text)
    assert served.post({**CHAT, "user": "next"}).status_code == 200
    assert [json.loads(body).get("user") for body in read] == ["next"]
    assert intake_of(served)._bytes == 0


def test_no_more_wait_to_be_read_than_the_worker_would_take(serve: Any, team: Any, clients: ThreadPoolExecutor) -> None:
    with serve(tiny_server.offer(team), max_waiting=1, max_batch=1) as served:
        with blocked(served):
            taken = [clients.submit(served.post, CHAT) for _ in range(2)]
            waits(served, 2)
            refused = served.post(CHAT)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert error_of(refused)["code"] == "rate_limit_exceeded"
        assert taken[0].result().status_code == 200
        tiny_server.wait_until(lambda: intake_of(served)._waiting == 0)
        served.wait_until_idle()
        assert served.post(CHAT).status_code == 200


def test_no_more_bytes_wait_to_be_read_than_a_few_bodies(
    serve: Any, team: Any, clients: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "LARGEST", 1)
    with serve(tiny_server.offer(team), max_body=1000) as served:
        with blocked(served):
            taken = clients.submit(served.post, {**CHAT, "user": "x" * 500})
            waits(served)
            assert served.post({**CHAT, "user": "x" * 500}).status_code == 429
            small = clients.submit(served.post, CHAT)
            waits(served, 2)
        assert taken.result().status_code == 200
        assert small.result().status_code == 200


def test_the_time_limit_counts_from_the_arrival(serve: Any, team: Any, clients: ThreadPoolExecutor) -> None:
    with serve(tiny_server.offer(team), time_limit=0.4) as served:
        with blocked(served):
            for stream in (False, True):
                late = served.post({**CHAT, "stream": stream})
                assert late.status_code == 504
                assert error_of(late)["code"] == "timeout"
        assert intake_of(served)._waiting == 0
    with serve(tiny_server.offer(team)) as served:
        with blocked(served):
            waited = clients.submit(served.post, CHAT)
            waits(served)
            time.sleep(0.3)
        assert waited.result().status_code == 200
        registry = served.worker.metrics.registry
        took = registry.get_sample_value("fusionroute_time_to_first_token_seconds_sum", {"model": "tiny"})
        assert took > 0.3


def test_a_server_that_stops_says_so_to_those_who_wait(
    serve: Any, team: Any, clients: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(tiny_server.offer(team), grace=0) as served, blocked(served), caplog.at_level("INFO"):
        asked = [clients.submit(served.post, {**CHAT, "stream": stream}) for stream in (False, True)]
        waits(served, 2)
        served.server.drain()
        for each in asked:
            assert each.result().status_code == 503
            assert error_of(each.result())["code"] == "shutting_down"
    assert "Traceback" not in caplog.text


CUTS = ["<s>", "</s>", "<|user|>", " ", "the quick", "Ünï", "🙂👍", "世界", "\n\n", "x  y", "e\u0301"]


@pytest.mark.parametrize("family", tiny_tokenizers.ALL)
@settings(max_examples=25)
@given(parts=st.lists(st.sampled_from(CUTS), min_size=1, max_size=8))
def test_an_echoed_text_is_cut_where_its_tokens_begin(family: str, parts: list[str]) -> None:
    """Control tokens that a text spells belong to it; those that the tokenizer puts in front do not."""
    tokenizer, text = tiny_tokenizers.ALL[family](), "".join(parts)
    ids = tokenizer(text).input_ids
    echo = echo_of(tokenizer, text, ids)
    assert echo.text == text
    pieces = pieces_of(echo.text, echo.offsets)
    assert "".join(pieces) == text
    if tokenizer.is_fast:  # of another its text is all that is known
        spelled = [piece for piece, id in zip(pieces, ids, strict=True) if id in control_tokens(tokenizer)]
        written = [part for part in parts if part in CUTS[:3]]
        assert [piece.strip() for piece in spelled if piece] == written


@pytest.mark.parametrize("family", tiny_tokenizers.ALL)
@settings(max_examples=25)
@given(data=st.data())
def test_echoed_token_ids_spell_their_control_tokens(family: str, data: Any) -> None:
    tokenizer = tiny_tokenizers.ALL[family]()
    known = control_tokens(tokenizer)
    one = st.one_of(st.sampled_from(sorted(known)), st.integers(0, len(tokenizer) - 1))
    ids = data.draw(st.lists(one, min_size=1, max_size=12))
    echo = echo_of(tokenizer, ids, ids)
    pieces = pieces_of(echo.text, echo.offsets)
    assert "".join(pieces) == echo.text
    told = [(piece, known[id]) for piece, id in zip(pieces, ids, strict=True) if id in known]
    assert all(spelling in piece for piece, spelling in told)


def pieces_of(text: str, offsets: list[int]) -> list[str]:
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    return [text[begin:end] for begin, end in pairwise([*offsets, len(text)])]
