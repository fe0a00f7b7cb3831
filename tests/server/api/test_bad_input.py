"""What cannot be followed is refused: the status, the field that is to blame, and words that help."""

import json
import logging
import threading
from typing import Any

import pytest
import torch

import tiny
import tiny_ensemble
import tiny_server
from fusionroute import Ensemble, Team
from fusionroute.server.offer import Offer

HI = [{"role": "user", "content": "hi"}]
CHAT = {"model": "tiny", "messages": HI, "max_tokens": 3}
TEXT = {"model": "tiny", "prompt": "hi", "max_tokens": 3}
BOTH: list[tuple[dict, str | None, str]] = [
    ({"temprature": 1}, "temprature", "unknown option 'temprature'; did you mean 'temperature'"),
    ({"ignore_eos": True}, "ignore_eos", "unknown option"),
    ({"foo\n-bar": True}, "foo\n-bar", "unknown option"),
    ({"model": 5}, "model", "a text is needed"),
    ({"temperature": -0.1}, "temperature", "it must be at least 0"),
    ({"temperature": 1e300}, "temperature", "it must be at most 2"),
    ({"temperature": "1"}, "temperature", "a number is needed"),
    ({"temperature": True}, "temperature", "a number is needed"),
    ({"top_p": 0}, "top_p", "it must be greater than 0"),
    ({"top_p": 1.5}, "top_p", "it must be at most 1"),
    ({"top_k": -2}, "top_k", "it must be at least -1"),
    ({"top_k": 10**30}, "top_k", "it must be less than"),
    ({"min_p": 2}, "min_p", "it must be at most 1"),
    ({"presence_penalty": 2.5}, "presence_penalty", "it must be at most 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "it must be at least -2"),
    ({"max_tokens": -1}, "max_tokens", "it must be at least"),
    ({"max_tokens": 1.5}, "max_tokens", "a whole number is needed"),
    ({"max_tokens": 10**30}, "max_tokens", "at most 100 tokens"),
    ({"n": 0}, "n", "it must be at least 1"),
    ({"n": 5}, "n", "at most 4 answers"),
    ({"n": 10**12}, "n", "at most 4 answers"),
    ({"n": True}, "n", "a whole number is needed"),
    ({"seed": -1}, "seed", "it must be at least 0"),
    ({"seed": 2**63}, "seed", "it must be less than"),
    ({"stop": ""}, "stop", "none of them empty"),
    ({"stop": ["a", ""]}, "stop[1]", "none of them empty"),
    ({"stop": ["a"] * 17}, "stop", "up to 16"),
    ({"stop": 5}, "stop", "a text or a list"),
    ({"stream": "yes"}, "stream", "true or false is needed"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed when stream is true"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown option"),
    ({"candidates": 2}, "candidates", "needs provenance"),
    ({"provenance": True, "candidates": 21}, "candidates", "it must be at most 20"),
    ({"user": 5}, "user", "a text is needed"),
    ({"logit_bias": {"50": 1}}, "logit_bias", "not supported"),
    ({"store": True}, "store", "not supported"),
    ({"metadata": {"a": "b"}}, "metadata", "not supported"),
    ({"service_tier": "flex"}, "service_tier", "not supported"),
]
OF_CHAT: list[tuple[dict, str | None, str]] = [
    ({"messages": []}, "messages", "at least 1 needed"),
    ({"messages": "hi"}, "messages", "a list is needed"),
    ({"messages": None}, "messages", "a list is needed"),
    ({"messages": [5]}, "messages[0]", "object"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "Missing required"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "Missing required"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'system', 'developer', 'user'"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "a text or a list of parts"),
    ({"messages": [*HI, {"role": "user", "content": "x", "name": "me"}]}, "messages[1].name", "not supported"),
    ({"messages": [{"role": "user", "content": "x", "foo": 1}]}, "messages[0].foo", "unknown option"),
    ({"messages": [*HI, {"role": "assistant", "content": "x"}]}, "messages", "the last message is the assistant's"),
    ({"max_completion_tokens": 5}, "max_tokens", "are one option"),
    ({"max_tokens": 0}, "max_tokens", "it must be at least 1"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "it must be at most 20"),
    ({"logprobs": 3}, "logprobs", "true or false is needed"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not supported"),
    ({"tool_choice": "required"}, "tool_choice", "not supported"),
    ({"functions": [{"name": "f"}]}, "functions", "not supported"),
    ({"modalities": ["audio"]}, "modalities", "not supported"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
    ({"prompt": "hi"}, "prompt", "unknown option"),
]
OF_TEXT: list[tuple[dict, str | None, str]] = [
    ({"prompt": ""}, "prompt", "the prompt is empty"),
    ({"prompt": ["a", ""]}, "prompt", "the prompt is empty"),
    ({"prompt": []}, "prompt", "none of them empty"),
    ({"prompt": [[]]}, "prompt[0]", "none of them empty"),
    ({"prompt": 5}, "prompt", "a text, a list of texts"),
    ({"prompt": [1, "a"]}, "prompt[0]", "a text, a list of texts"),
    ({"prompt": [1.5]}, "prompt[0]", "a text, a list of texts"),
    ({"prompt": None}, "prompt", "a text, a list of texts"),
    ({"prompt": [-1]}, "prompt", "integers from 0 to 260; got -1"),
    ({"prompt": [10**30]}, "prompt", "integers from 0 to 260"),
    ({"prompt": ["a"] * 1000}, "prompt", "asks for 1000 answers at once"),
    ({"max_tokens": 0}, "max_tokens", "nothing to do without echo"),
    ({"logprobs": True}, "logprobs", "a whole number is needed"),
    ({"logprobs": 21}, "logprobs", "it must be at most 20"),
    ({"best_of": 3}, "best_of", "not supported"),
    ({"suffix": "x"}, "suffix", "not supported"),
    ({"messages": HI}, "messages", "unknown option"),
]
CASES = [
    *(("/v1/chat/completions", CHAT, *case) for case in [*BOTH, *OF_CHAT]),
    *(("/v1/completions", TEXT, *case) for case in [*BOTH, *OF_TEXT]),
]


def check_error(reply: Any, status: int, param: str | None, message: str, code: str | None = None) -> None:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert list(reply.json()) == ["error"]
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert error["param"] == param
    assert code is None or error["code"] == code
    assert "Traceback" not in reply.text
    assert "fusionroute/" not in reply.text


@pytest.mark.parametrize(("path", "body", "change", "param", "message"), CASES, ids=lambda value: str(value)[:40])
def test_a_field_that_cannot_be_followed(
    served: Any, path: str, body: dict, change: dict, param: str, message: str
) -> None:
    check_error(served.post({**body, **change}, path), 400, param, message)
    if "stream" not in change:
        streamed = served.post({**body, "stream": True, **change}, path)
        if param != "stream_options":
            check_error(streamed, 400, param, message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "an object is needed"),
        (b"null", "an object is needed"),
        (b'{"model": "\xff"}', "not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "not valid JSON"),
        (b'{"model": "\\ud83d"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"temperature": NaN, "model": "tiny", "messages": [{"role": "user", "content": "x"}]}', "finite number"),
        (
            b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "seed": 1' + b"0" * 5000 + b"}",
            "number out of range",
        ),
        (json.dumps({**TEXT, "prompt": [1] * 300_000}).encode(), "context length"),
        (json.dumps({**TEXT, "prompt": [[]] * 300_000}).encode(), "none of them empty"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_body_that_is_no_request(served: Any, body: bytes, message: str) -> None:
    path = "/v1/completions" if b'"prompt"' in body else "/v1/chat/completions"
    reply = served.http.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]
    assert len(reply.text) < 2000


def test_a_body_of_another_type(served: Any) -> None:
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
        reply = served.http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers)
        check_error(reply, 400, None, "Content-Type: application/json", "unsupported_content_type")
    reply = served.http.post(
        "/v1/chat/completions", content=json.dumps(CHAT), headers={"content-type": "application/json; charset=utf-8"}
    )
    assert reply.status_code == 200


@pytest.mark.parametrize("model", ["nobody", "", "tiny/", "../../etc/passwd", "x" * 256, "\ud800x"[1:], "tiny/nobody"])
def test_a_model_that_is_not_offered(served: Any, model: str) -> None:
    for body, path in ((CHAT, "/v1/chat/completions"), (TEXT, "/v1/completions")):
        check_error(served.post({**body, "model": model}, path), 404, "model", "does not exist", "model_not_found")
    check_error(served.http.get("/v1/models/nobody"), 404, "model", "this server offers: tiny", "model_not_found")


def test_a_prompt_that_does_not_fit(served: Any, serve: Any) -> None:
    long = {**CHAT, "messages": [{"role": "user", "content": "x" * 500}]}
    words = "This model's maximum context length is 160 tokens. However, your messages resulted in 502 tokens"
    check_error(served.post(long), 400, "messages", words, "context_length_exceeded")
    check_error(served.post({**long, "stream": True}), 400, "messages", words, "context_length_exceeded")
    raw = served.post({**TEXT, "prompt": "x" * 160}, "/v1/completions")
    check_error(raw, 400, "prompt", "your prompt resulted in 160 tokens", "context_length_exceeded")
    assert served.post({**TEXT, "prompt": "x" * 159}, "/v1/completions").status_code == 200
    with serve(tiny_server.offer(), max_prompt_tokens=10) as strict:
        reply = strict.post({**TEXT, "prompt": "x" * 11}, "/v1/completions")
        check_error(reply, 400, "prompt", "maximum prompt length is 10 tokens", "context_length_exceeded")
        assert strict.post({**TEXT, "prompt": "x" * 10}, "/v1/completions").status_code == 200


def test_addresses_and_methods_that_are_not_there(served: Any) -> None:
    check_error(served.http.get("/v1/nothing"), 404, None, "nothing at this address", "not_found")
    check_error(served.http.get("/docs"), 404, None, "nothing at this address")
    check_error(served.http.post("/v1/models/"), 405, None, "does not take that method")
    wrong = served.http.get("/v1/chat/completions")
    check_error(wrong, 405, None, "does not take that method", "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_a_template_that_refuses(serve: Any) -> None:
    team = tiny.team()
    team.tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('Conversation roles must alternate') }}"
        "{% endif %}{% for m in messages %}{{ m['content'] + 'x' }}{% endfor %}"
    )
    strict = Team(router=team.router, experts=team.experts, tokenizer=team.tokenizer, prompt="chat_template")
    with serve(tiny_server.offer(strict)) as served:
        refused = served.post({**CHAT, "messages": [{"role": "system", "content": "x"}, *HI]})
        check_error(refused, 400, "messages", "Conversation roles must alternate")
        assert served.post(CHAT).status_code == 200


def test_a_team_without_a_prompt_format_takes_text_alone(serve: Any) -> None:
    with serve(tiny_server.offer(tiny.team())) as served:
        check_error(served.post(CHAT), 400, "model", "ask it by /v1/completions")
        assert served.post(TEXT, "/v1/completions").status_code == 200
        assert served.http.get("/v1/models/tiny").json()["fusionroute"]["chat"] is False


def test_what_an_ensemble_cannot_do(serve: Any, tmp_path: Any) -> None:
    file = tiny_ensemble.write_file(tmp_path, tiny_ensemble.save(tmp_path, ["bytes", "pieces"]))
    offer = Offer.of_ensemble(Ensemble.from_file(file), "pair", max_batch=4)
    with serve(offer) as served:
        chat, text = {**CHAT, "model": "pair", "temperature": 0}, {**TEXT, "model": "pair"}
        told = served.post({**chat, "provenance": True}).json()["choices"][0]["provenance"]
        assert all(item["ensembled"] in (True, False) and item["verdict"] for item in told)
        assert {name for item in told for name in item.get("support", {})} <= {"bytes", "pieces"}
        raw = served.post(text, "/v1/completions")
        check_error(raw, 400, "prompt", "in its own format; send it as a message")
        ids = served.post({**text, "prompt": [1, 2]}, "/v1/completions")
        check_error(ids, 400, "prompt", "Token ids speak to one tokenizer alone")
        penalised = served.post({**chat, "presence_penalty": 1})
        check_error(penalised, 400, "presence_penalty", "presence_penalty=1")
        check_error(served.post({**chat, "provenance": True, "candidates": 2}), 400, "candidates", "candidates=2")
        scored = served.post({**text, "echo": True, "logprobs": 1}, "/v1/completions")
        check_error(scored, 400, "echo", "gives no log-probabilities of prompts")
        assert served.post({**text, "model": "pair/bytes"}, "/v1/completions").status_code == 200


def test_a_request_that_could_never_run(serve: Any, team: Any) -> None:
    with serve(tiny_server.offer(team, cache_limit="64KiB")) as served:
        limit = served.worker.offer.scheduler.token_limit
        assert limit < 150, "this test needs a small cache"
        for stream in (False, True):
            for length, more, param in (
                (limit, {"max_tokens": 5}, "prompt"),
                (limit, {}, "prompt"),
                (10, {"max_tokens": limit}, "max_tokens"),
            ):
                asked = {"model": "tiny", "prompt": "x" * length, "stream": stream, **more}
                reply = served.post(asked, "/v1/completions")
                check_error(reply, 400, param, f"memory than this server has, which is that of {limit} tokens")
                assert reply.json()["error"]["code"] == "request_too_large"


def test_a_length_that_nobody_named_is_no_reason_to_refuse(serve: Any, team: Any) -> None:
    with serve(tiny_server.offer(team, cache_limit="64KiB")) as served:
        limit = served.worker.offer.scheduler.token_limit
        assert limit < 150, "this test needs a small cache"
        reply = served.post({"model": "tiny", "messages": HI, "temperature": 0})
        assert reply.status_code == 200, reply.text
        assert reply.json()["usage"]["total_tokens"] <= limit
        raw = served.post({"model": "tiny", "prompt": "x" * (limit - 1)}, "/v1/completions")
        assert raw.json()["usage"] == {"prompt_tokens": limit - 1, "completion_tokens": 1, "total_tokens": limit}
        check_error(served.post({"model": "tiny", "messages": HI, "max_tokens": 999}), 400, "max_tokens", "memory")


def test_a_misspelt_field_is_told_before_the_one_that_is_missing(served: Any) -> None:
    for body, path in ((CHAT, "/v1/chat/completions"), (TEXT, "/v1/completions")):
        wrong = {**{key: value for key, value in body.items() if key != "model"}, "modle": "tiny"}
        reply = served.post(wrong, path)
        check_error(reply, 400, "modle", "unknown option 'modle'; did you mean 'model'? allowed: model, stream, ")
        offered = reply.json()["error"]["message"].partition("allowed: ")[2].split(", ")
        assert {"temperature", "provenance", "max_tokens"} <= set(offered)
        assert not {"logit_bias", "tools", "suffix", "metadata", "response_format", "audio"} & set(offered)
        assert "did you mean" not in served.post({**body, "logit_bia": {}}, path).json()["error"]["message"]


def test_two_candidates_of_one_name(serve: Any) -> None:
    team = tiny.team(names=("math", "fused"), prompt="chat_template")
    with serve(tiny_server.offer(team)) as served:
        asked = {**CHAT, "provenance": True, "candidates": 2}
        check_error(served.post(asked), 400, "candidates", "two entries of the name 'fused'")
        assert served.post({**CHAT, "provenance": True}).status_code == 200
        assert served.post({**asked, "model": "tiny/fused"}).status_code == 200


def test_a_full_queue(serve: Any, team: Any) -> None:
    with serve(tiny_server.offer(team, max_batch=1), max_waiting=1, max_n=2, max_new_tokens=100) as served:
        held = [tiny_server.ask(served.worker, "hi", max_new_tokens=10**6, ignore_eos=True) for _ in range(2)]
        held[0].wait_for_token()
        may_read = threading.Event()  # until it is set the router does not go on, so that both keep their places
        hook = team.router.register_forward_pre_hook(lambda *_: may_read.wait(60) and None)
        try:
            for stream in (False, True):
                reply = served.post({**CHAT, "stream": stream})
                check_error(reply, 429, None, "queue is full", "rate_limit_exceeded")
                assert int(reply.headers["retry-after"]) >= 1
                assert reply.json()["error"]["type"] == "rate_limit_error"
        finally:
            may_read.set()
            hook.remove()
        for each in held:
            each.ticket.cancel()
        served.wait_until_idle()
        assert served.post(CHAT).status_code == 200


def test_the_time_limit(serve: Any, team: Any) -> None:
    with serve(tiny_server.offer(team), time_limit=1e-6) as served:
        check_error(served.post(CHAT), 504, None, "time limit", "timeout")
        check_error(served.post({**CHAT, "stream": True}), 504, None, "time limit", "timeout")
        served.wait_until_idle()


def test_a_model_that_fails(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    broken = tiny.team(prompt="chat_template")
    with torch.no_grad():
        broken.router.lm.get_output_embeddings().weight.fill_(float("nan"))
    with serve(tiny_server.offer(broken)) as served:
        check_error(served.post(CHAT), 500, None, "model 'router' returned NaN", "model_error")
        check_error(served.post({**CHAT, "stream": True}), 500, None, "model 'router' returned NaN", "model_error")
        assert served.post({**CHAT, "model": "tiny/math"}).status_code == 200

    raising = tiny.team(prompt="chat_template")

    def fail(*_: Any) -> None:
        raise RuntimeError("secret of /home/somebody")

    handle = raising.experts["math"].register_forward_pre_hook(fail)
    with serve(tiny_server.offer(raising)) as served, caplog.at_level(logging.CRITICAL):
        reply = served.post({**CHAT, "model": "tiny/math"})
        check_error(reply, 500, None, "", "model_error")
        assert "secret" not in reply.text
        handle.remove()
        assert served.post({**CHAT, "model": "tiny/math"}).status_code == 200
        served.wait_until_idle()


def test_a_failure_in_the_middle_of_a_stream(serve: Any, team: Any) -> None:
    broken = tiny.team(prompt="chat_template")
    count = 0

    def fail_later(module: Any, args: Any, output: Any) -> Any:
        nonlocal count
        count += 1
        if count > 4:
            output.logits.fill_(float("nan"))
        return output

    with serve(tiny_server.offer(broken)) as served:
        broken.experts["math"].register_forward_hook(fail_later)
        reply = served.post({**CHAT, "model": "tiny/math", "max_tokens": 50, "stream": True, "seed": 1, "n": 2})
        assert reply.status_code == 200
        events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        error = json.loads(events[-2])["error"]
        assert error["code"] == "model_error"
        assert "math" in error["message"]
        assert not any(choice["finish_reason"] for each in events[:-2] for choice in json.loads(each)["choices"])
        served.wait_until_idle()
