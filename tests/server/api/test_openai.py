"""The official client against a running server: every endpoint and parameter, streaming and not."""

from itertools import chain
from typing import Any

import openai
import pytest
import torch

import tiny
import tiny_scripted
import tiny_server
from fusionroute import GenerationSettings, Router, Team
from fusionroute.engine.engine import Engine
from fusionroute.methods.averaging import Averaging
from fusionroute.methods.single import Single

HI = [{"role": "user", "content": "hi"}]
SAMPLED = {"temperature": 1.3, "top_p": 0.95, "seed": 7}
AS_OURS = {"do_sample": True, **SAMPLED}
DRAWINGS = [({"temperature": 0}, {}), (SAMPLED, AS_OURS)]


def chat(served: Any, **options: Any) -> Any:
    options = {"model": "tiny", "messages": HI, "max_tokens": 12, "temperature": 0, **options}
    return served.openai.chat.completions.create(**options)


def complete(served: Any, **options: Any) -> Any:
    options = {"model": "tiny", "prompt": "hello", "max_tokens": 12, "temperature": 0, **options}
    return served.openai.completions.create(**options)


def joined(chunks: Any, count: int = 1) -> tuple[list[str], list[str | None]]:
    """The texts of a stream by their indices, and how they ended."""
    texts, reasons = [""] * count, list[str | None]([None] * count)
    for chunk in chunks:
        for choice in chunk.choices:
            assert reasons[choice.index] is None, "nothing follows the end of an answer"
            texts[choice.index] += (choice.delta.content if hasattr(choice, "delta") else choice.text) or ""
            reasons[choice.index] = choice.finish_reason
    return texts, reasons


def test_models(served: Any, team: Team) -> None:
    found = {model.id: model for model in served.openai.models.list()}
    assert next(iter(found)) == "tiny"
    assert {"tiny/no-complement", "tiny/math", "tiny/router", "tiny/average"} <= found.keys()
    about = served.openai.models.retrieve("tiny/math").model_dump()
    assert about == found["tiny/math"].model_dump()
    assert about["object"] == "model"
    assert about["owned_by"] == "fusionroute"
    assert about["fusionroute"]["writers"] == ["math"]
    whole = found["tiny"].model_dump()["fusionroute"]
    assert whole["writers"] == whole["weighted"] == ["math", "code", "chat"]
    assert whole["context_length"] == tiny.CONTEXT
    assert whole["chat"]
    assert whole["scores_prompts"]
    assert whole["candidates"]
    assert whole["penalties"]


@pytest.mark.parametrize(("asked", "ours"), DRAWINGS)
def test_chat_is_generate_and_so_is_its_stream(served: Any, team: Team, asked: dict, ours: dict) -> None:
    (wanted,) = team.generate([HI], max_new_tokens=12, **ours)
    reply = chat(served, **asked)
    (choice,) = reply.choices
    assert choice.message.content == wanted.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == wanted.finish_reason
    prompt_tokens = len(team.prompt_format.encode(HI))
    assert reply.usage.prompt_tokens == prompt_tokens
    assert reply.usage.completion_tokens == len(wanted.token_ids)
    assert reply.usage.total_tokens == prompt_tokens + len(wanted.token_ids)
    assert reply.object == "chat.completion"
    assert reply.model == "tiny"
    chunks = list(chat(served, stream=True, **asked))
    assert joined(chunks) == ([wanted.text], [wanted.finish_reason])
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize(("asked", "ours"), DRAWINGS)
def test_a_completion_is_generate_and_so_is_its_stream(served: Any, team: Team, asked: dict, ours: dict) -> None:
    (wanted,) = team.generate([team.tokenizer("hello").input_ids], max_new_tokens=12, **ours)
    reply = complete(served, **asked)
    assert reply.choices[0].text == wanted.text
    assert reply.choices[0].finish_reason == wanted.finish_reason
    assert reply.usage.completion_tokens == len(wanted.token_ids)
    assert joined(complete(served, stream=True, **asked)) == ([wanted.text], [wanted.finish_reason])


def test_several_answers_draw_from_seeds_one_after_another(served: Any, team: Team) -> None:
    wanted = [team.generate([HI], max_new_tokens=12, **{**AS_OURS, "seed": SAMPLED["seed"] + at})[0] for at in range(3)]
    texts, reasons = [each.text for each in wanted], [each.finish_reason for each in wanted]
    assert len(set(texts)) == 3
    reply = chat(served, n=3, **SAMPLED)
    assert [choice.message.content for choice in reply.choices] == texts
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [choice.finish_reason for choice in reply.choices] == reasons
    assert reply.usage.prompt_tokens == len(team.prompt_format.encode(HI))
    assert reply.usage.completion_tokens == sum(len(each.token_ids) for each in wanted)
    assert joined(chat(served, n=3, stream=True, **SAMPLED), 3) == (texts, reasons)
    raw = complete(served, n=3, **SAMPLED)
    assert joined(complete(served, n=3, stream=True, **SAMPLED), 3)[0] == [choice.text for choice in raw.choices]


def test_several_prompts_and_several_answers_to_each(served: Any, team: Team) -> None:
    prompts = ["hello", "été", "x"]
    alone = [[c.text for c in complete(served, prompt=prompt, n=2, **SAMPLED).choices] for prompt in prompts]
    together = complete(served, prompt=prompts, n=2, **SAMPLED)
    assert [choice.text for choice in together.choices] == list(chain(*alone))
    assert [choice.index for choice in together.choices] == list(range(6))
    assert together.usage.prompt_tokens == sum(len(team.tokenizer(prompt).input_ids) for prompt in prompts)
    ids = [team.tokenizer(prompt).input_ids for prompt in prompts]
    assert [c.text for c in complete(served, prompt=ids, n=2, **SAMPLED).choices] == list(chain(*alone))
    assert complete(served, prompt=ids[0], n=2, **SAMPLED).choices[0].text == alone[0][0]


@pytest.mark.parametrize("model", ["tiny/no-complement", "tiny/math", "tiny/router", "tiny/average"])
def test_every_id_writes_as_its_method(served: Any, team: Team, model: str) -> None:
    ids = team.prompt_format.encode(HI)
    if model == "tiny/no-complement":
        wanted = team.generate([HI], complement=False, max_new_tokens=12)[0].text
    else:
        method = {
            "tiny/average": lambda: Averaging(team.experts),
            "tiny/router": lambda: Single(team.router.lm, "router"),
            "tiny/math": lambda: Single(team.experts["math"], "math"),
        }[model]()
        (completion,) = Engine(method, team.tokenizer).generate([ids], GenerationSettings(max_new_tokens=12))
        wanted = completion.text
    reply = chat(served, model=model)
    assert reply.choices[0].message.content == wanted
    assert reply.model == model


def test_stop_strings_of_several_bytes(served: Any, team: Team) -> None:
    (free,) = team.generate([HI], max_new_tokens=30, **AS_OURS)
    stop = free.text[6:9]
    (wanted,) = team.generate([HI], max_new_tokens=30, stop=[stop], **AS_OURS)
    assert wanted.finish_reason == "stop"
    assert stop not in wanted.text
    reply = chat(served, max_tokens=30, stop=stop, **SAMPLED)
    assert reply.choices[0].message.content == wanted.text
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == len(wanted.token_ids)
    assert joined(chat(served, max_tokens=30, stop=[stop], stream=True, **SAMPLED)) == ([wanted.text], ["stop"])


def test_every_way_of_drawing_reaches_the_engine(served: Any, team: Team) -> None:
    for ours in (
        {"temperature": 0.5}, {"top_k": 3}, {"min_p": 0.2}, {"top_p": 0.3},
        {"presence_penalty": 1.5}, {"frequency_penalty": -1.5},
    ):  # fmt: skip
        own = {key: ours[key] for key in ("top_k", "min_p") if key in ours}
        options = {key: value for key, value in ours.items() if key not in own}
        (wanted,) = team.generate([HI], max_new_tokens=6, **{"do_sample": True, "seed": 3, "temperature": 1.0, **ours})
        reply = chat(served, **{"max_tokens": 6, "temperature": 1, "seed": 3, **options}, extra_body=own)
        assert reply.choices[0].message.content == wanted.text, ours
    plain = team.generate([HI], max_new_tokens=6, do_sample=True, seed=3)[0].text
    assert chat(served, max_tokens=6, temperature=None, seed=3).choices[0].message.content == plain, "1 if not said"
    off = {"top_k": -1, "min_p": 0}
    assert (
        chat(served, max_tokens=6, temperature=1, seed=3, top_p=1, extra_body=off).choices[0].message.content == plain
    )
    greedy = team.generate([HI], max_new_tokens=16)[0].text
    filtered = chat(served, max_tokens=16, temperature=0, top_p=0.5, extra_body={"top_k": 2, "min_p": 0.1})
    assert filtered.choices[0].message.content == greedy
    assert chat(served, max_tokens=16, temperature=1e-30).choices[0].message.content == greedy
    penalised = team.generate([HI], max_new_tokens=16, presence_penalty=2, frequency_penalty=2)[0].text
    assert penalised != greedy
    asked = chat(served, max_tokens=16, presence_penalty=2, frequency_penalty=2)
    assert asked.choices[0].message.content == penalised


def test_two_names_for_the_longest_answer(served: Any) -> None:
    assert chat(served, max_tokens=3).usage.completion_tokens <= 3
    newer = chat(served, max_tokens=None, max_completion_tokens=3)
    assert newer.choices[0].message.content == chat(served, max_tokens=3).choices[0].message.content
    assert complete(served, max_tokens=None).usage.completion_tokens <= 16


def test_an_answer_ends_where_the_context_does(served: Any, team: Team) -> None:
    reply = complete(served, prompt="x" * 150, max_tokens=100)
    assert reply.usage.total_tokens <= tiny.CONTEXT


def test_usage_at_the_end_of_a_stream(served: Any) -> None:
    for ask in (chat, complete):
        whole = ask(served).usage
        *chunks, last = ask(served, stream=True, stream_options={"include_usage": True})
        assert last.choices == []
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (
            whole.prompt_tokens,
            whole.completion_tokens,
        )
        assert all(chunk.usage is None for chunk in chunks)


def test_log_probabilities_of_chat(served: Any, team: Team) -> None:
    (wanted,) = team.generate([HI], max_new_tokens=12, logprobs=3)
    content = chat(served, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert [item.logprob for item in content] == pytest.approx([record.logprob for record in wanted.trace], abs=1e-5)
    for item, record in zip(content, wanted.trace, strict=True):
        assert [top.logprob for top in item.top_logprobs] == pytest.approx(
            [logprob for _, logprob in record.top_logprobs], abs=1e-5
        )
        assert item.token == item.top_logprobs[0].token, "greedy"
    written = b"".join(
        bytes(item.bytes) for item, r in zip(content, wanted.trace, strict=True) if r.token_id != tiny.EOS
    )
    assert written.decode(errors="replace") == wanted.text
    chunks = chat(served, logprobs=True, top_logprobs=3, stream=True)
    streamed = [
        item for chunk in chunks for choice in chunk.choices if choice.logprobs for item in choice.logprobs.content
    ]
    assert [item.token for item in streamed] == [item.token for item in content]
    assert chat(served, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat(served).choices[0].logprobs is None


def test_log_probabilities_of_completions_with_the_prompts(served: Any, team: Team) -> None:
    prompt = "été"
    ids = team.tokenizer(prompt).input_ids
    (wanted,) = team.generate([ids], max_new_tokens=5, logprobs=2, prompt_logprobs=2)
    (choice,) = complete(served, prompt=prompt, max_tokens=5, logprobs=2, echo=True).choices
    told = choice.logprobs
    assert choice.text == prompt + wanted.text
    assert wanted.prompt_logprobs is not None
    expected = [logprob for _, logprob, _ in wanted.prompt_logprobs] + [record.logprob for record in wanted.trace]
    assert told.token_logprobs[0] is expected[0] is told.top_logprobs[0] is None
    assert told.token_logprobs[1:] == pytest.approx(expected[1:], abs=1e-5)
    assert len(told.tokens) == len(told.text_offset) == len(told.top_logprobs) == len(ids) + len(wanted.token_ids)
    assert told.tokens[:3] == ["bytes:\\xc3", "bytes:\\xa9", "t"]
    assert told.text_offset[:5] == [0, 0, 1, 2, 2]
    assert told.text_offset[5] == len(prompt)
    for top, logprob, token in list(zip(told.top_logprobs, told.token_logprobs, told.tokens, strict=True))[1:]:
        assert top[token] == logprob, "the token itself is among them"
        assert len(top) in (2, 3)
        assert max(top.values()) >= logprob
    streamed = [
        chunk.choices[0] for chunk in complete(served, prompt=prompt, max_tokens=5, logprobs=2, echo=True, stream=True)
    ]
    assert "".join(part.text for part in streamed) == choice.text
    for field in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert list(chain(*(getattr(p.logprobs, field) for p in streamed if p.logprobs))) == getattr(told, field)


def test_a_prompt_alone_can_be_scored(served: Any, team: Team) -> None:
    reply = complete(served, prompt=["hello", "hi"], max_tokens=0, logprobs=0, echo=True)
    assert [choice.text for choice in reply.choices] == ["hello", "hi"]
    assert [len(choice.logprobs.tokens) for choice in reply.choices] == [5, 2]
    assert reply.usage.completion_tokens == 0
    assert {choice.finish_reason for choice in reply.choices} == {"length"}
    assert complete(served, prompt="hello", max_tokens=0, echo=True).choices[0].text == "hello"
    ids = team.tokenizer("hello").input_ids
    assert complete(served, prompt=ids, max_tokens=1, echo=True).choices[0].text.startswith("hello")


def test_who_wrote_what(served: Any, team: Team) -> None:
    (wanted,) = team.generate([HI], max_new_tokens=12, candidates=2, **AS_OURS)
    asked = {"provenance": True, "candidates": 2}
    (choice,) = chat(served, extra_body=asked, **SAMPLED).choices
    told = choice.model_dump()["provenance"]
    assert [item["token_id"] for item in told] == wanted.token_ids
    assert "".join(item["text"] for item in told) == wanted.text
    for item, record in zip(told, wanted.trace, strict=True):
        assert item["expert"] == record.expert
        assert item["decided_by"] == record.decided_by
        assert item["weights"] == pytest.approx(dict(zip(team.expert_names, record.weights, strict=True)), abs=1e-6)
        assert item["candidates"].keys() == {"router", record.expert, "fused"}
        for name, likeliest in record.candidates:
            assert [c["token_id"] for c in item["candidates"][name]] == [id for id, _ in likeliest]
            assert [c["logprob"] for c in item["candidates"][name]] == pytest.approx(
                [p for _, p in likeliest], abs=1e-5
            )
    streamed = [
        item
        for chunk in chat(served, stream=True, extra_body=asked, **SAMPLED)
        for choice in chunk.choices
        for item in choice.model_dump().get("provenance", [])
    ]
    assert [item["token_id"] for item in streamed] == wanted.token_ids
    alone = complete(served, model="tiny/math", extra_body={"provenance": True}).choices[0].model_dump()["provenance"]
    assert {item["expert"] for item in alone} == {"math"}
    assert all(item["weights"] == {} and "candidates" not in item for item in alone)
    assert "provenance" not in chat(served).choices[0].model_dump()


def test_messages_may_be_parts_and_have_roles(served: Any, team: Team) -> None:
    wanted = team.generate([[{"role": "system", "content": "be"}, *HI]], max_new_tokens=12)[0].text
    for role in ("system", "developer"):
        parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "e"}]
        asked = [{"role": role, "content": parts}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
        assert chat(served, messages=asked).choices[0].message.content == wanted


def test_an_answer_can_be_sent_back_as_it_came(served: Any) -> None:
    answer = chat(served).choices[0].message
    assert chat(served, messages=[*HI, answer.model_dump(), *HI]).choices[0].message.content is not None


def test_fields_that_ask_for_nothing_are_taken(served: Any) -> None:
    plain = chat(served).choices[0].message.content
    nothing = {
        "response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "logit_bias": {}, "store": False,
        "parallel_tool_calls": True, "modalities": ["text"], "user": "me", "metadata": None, "service_tier": "auto",
    }  # fmt: skip
    assert chat(served, **nothing).choices[0].message.content == plain
    nulls = dict.fromkeys(["stop", "n", "seed", "top_p", "logprobs", "top_logprobs", "stream", "presence_penalty"])
    assert chat(served, extra_body=nulls).choices[0].message.content == plain
    raw = complete(served).choices[0].text
    assert complete(served, best_of=1, suffix=None, extra_body={"logit_bias": None}).choices[0].text == raw


def speaker(text: str) -> Team:
    """Writes one text for ever: each byte of it knows the next, so no byte may stand in it twice."""
    tokenizer, size = tiny.tokenizer(), tiny.VOCABULARY + 1
    ids = tokenizer(text).input_ids
    assert len(set(ids)) == len(ids)
    table = torch.full((size, size), 1e-6)
    table[:, ids[0]] = 1.0
    for one, following in zip(ids, [*ids[1:], ids[0]], strict=True):
        table[one] = 1e-6
        table[one, following] = 1.0
    made = [tiny_scripted.bigram(table.tolist(), max_position_embeddings=tiny.CONTEXT) for _ in range(3)]
    experts = {"math": made[1], "code": made[2]}
    return Team(router=Router(made[0], 2).eval(), experts=experts, tokenizer=tokenizer, prompt="chat_template")


def test_no_character_is_ever_split(serve: Any) -> None:
    text = "🙂日é"  # nine bytes, each a token
    cases = [(36, None, text * 4), (37, None, text * 4 + "�"), (36, "日", "🙂"), (36, "é🙂", "🙂日")]
    with serve(tiny_server.offer(speaker(text))) as served:
        for most, stop, wanted in cases:
            assert chat(served, max_tokens=most, stop=stop).choices[0].message.content == wanted
            assert complete(served, max_tokens=most, stop=stop).choices[0].text == wanted
            for ask in (chat, complete):
                pieces = [joined([chunk])[0][0] for chunk in ask(served, max_tokens=most, stop=stop, stream=True)]
                assert "".join(pieces) == wanted
                # what a limit cuts off is shown at the very end and nowhere else
                assert {piece.rstrip("�") for piece in pieces} <= {"", *text}
                assert sum(piece.count("�") for piece in pieces) == wanted.count("�")


def test_errors_are_the_clients_exceptions(served: Any, serve: Any, team: Team) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        chat(served, model="nobody")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        served.openai.models.retrieve("nobody")
    with pytest.raises(openai.BadRequestError) as long:
        chat(served, messages=[{"role": "user", "content": "x" * 200}])
    assert long.value.code == "context_length_exceeded"
    assert long.value.param == "messages"
    assert "maximum context length is 160 tokens. However, your messages resulted in 202 tokens" in str(long.value)
    with pytest.raises(openai.BadRequestError, match=r"did you mean 'temperature'"):
        chat(served, extra_body={"temprature": 1})
    with pytest.raises(openai.NotFoundError):
        served.openai.embeddings.create(model="tiny", input="x")
    with serve(tiny_server.offer(team), api_keys=["secret"]) as locked, pytest.raises(openai.AuthenticationError) as no:
        chat(locked)
    assert no.value.code == "invalid_api_key"
