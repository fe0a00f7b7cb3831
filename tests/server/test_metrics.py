"""Counters and histograms say what happened; clients cannot make labels."""

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

import tiny_server
from fusionroute.engine.speculation import SpeculationSettings
from fusionroute.server.metrics import Metrics
from fusionroute.server.worker import Worker
from tiny_server import NAME, ask, running


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"fusionroute_{name}", labels)


@pytest.fixture(scope="module")
def offer():
    return tiny_server.offer()


def test_tokens_ends_and_times_are_counted(offer) -> None:
    with running(offer) as worker:
        asked = ask(worker, "hi", "you", max_new_tokens=9, ignore_eos=True).wait()
        cancelled = ask(worker, "hi", model=f"{NAME}/code", max_new_tokens=140, ignore_eos=True).wait_for_token()
        cancelled.ticket.cancel()
        tiny_server.wait_until(lambda: not worker._unfinished)
        metrics = worker.metrics
    prompt = len(offer[NAME].prompt_format.encode("hi")) + len(offer[NAME].prompt_format.encode("you"))
    assert value(metrics, "prompt_tokens_total", model=NAME) == prompt
    experts = [record.expert for update in asked.updates for record, _ in update.written]
    for expert in set(experts):
        found = value(metrics, "generated_tokens_total", model=NAME, expert=expert)
        assert found == experts.count(expert)
    assert value(metrics, "finished_total", model=NAME, reason="length") == 2
    assert value(metrics, "finished_total", model=f"{NAME}/code", reason="cancelled") == 1
    assert value(metrics, "time_to_first_token_seconds_count", model=NAME) == 2
    assert value(metrics, "time_between_tokens_seconds_count", model=NAME) == 2 * 8


def test_times_are_those_that_passed(offer) -> None:
    began = time.monotonic()
    with running(offer) as worker:
        ask(worker, "hi", max_new_tokens=9, ignore_eos=True).wait()
        passed, metrics = time.monotonic() - began, worker.metrics
    first = value(metrics, "time_to_first_token_seconds_sum", model=NAME)
    between = value(metrics, "time_between_tokens_seconds_sum", model=NAME)
    assert 0 < first < passed
    assert 0 < between < passed
    assert first + between < passed


def test_requests_are_counted_by_names_of_the_offer_alone(offer) -> None:
    metrics = Worker(offer, tiny_server.ServerSettings(), Metrics()).metrics
    metrics.count_request("chat", NAME, 200, 0.5)
    metrics.count_request("chat", NAME, 200, 1.5)
    for name in ("made up", "made up too", None):
        metrics.count_request("chat", name, 404, 0.1)
    assert value(metrics, "requests_total", endpoint="chat", model=NAME, status="200") == 2
    assert value(metrics, "requests_total", endpoint="chat", model="", status="404") == 3
    assert value(metrics, "request_seconds_sum", model=NAME) == 2
    assert "made up" not in metrics.render()[0].decode()


def test_what_is_rendered_is_prometheus_text_with_every_name(offer) -> None:
    with running(offer) as worker:
        ask(worker, "hi", max_new_tokens=2).wait()
        text, content_type = worker.metrics.render()
    assert content_type.startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(text.decode())}
    wanted = ["requests", "requests_running", "sequences_waiting", "sequences_running", "cache_rows", "prompt_tokens"]
    wanted += ["generated_tokens", "finished", "time_to_first_token_seconds", "time_between_tokens_seconds"]
    wanted += ["reused_tokens", "drafted_tokens", "kept_tokens"]
    assert {f"fusionroute_{name}" for name in [*wanted, "request_seconds"]} <= names


def test_drafts_and_reused_beginnings_are_counted_where_they_happen(offer) -> None:
    with running(tiny_server.offer(speculation=SpeculationSettings(drafter="router", adaptive=False))) as worker:
        ask(worker, "hi " * 20, max_new_tokens=9, ignore_eos=True).wait()
        ask(worker, "hi " * 20, max_new_tokens=9, ignore_eos=True).wait()
        method, runners, metrics = worker.offer[NAME].engine.method, worker.offer.runners, worker.metrics
        assert value(metrics, "drafted_tokens_total", model=NAME) == method.drafted > 0
        assert value(metrics, "kept_tokens_total", model=NAME) == method.kept
        for runner in runners:
            assert value(metrics, "reused_tokens_total", model=runner.name) == runner.tokens_reused
        assert any(runner.tokens_reused for runner in runners)
    with running(offer) as worker:
        assert value(worker.metrics, "drafted_tokens_total", model=NAME) is None, "nobody drafts"


def test_two_servers_in_one_process_do_not_meet(offer) -> None:
    first, second = (Worker(offer, tiny_server.ServerSettings(), Metrics()).metrics for _ in range(2))
    first.count_prompt(NAME, 5)
    assert value(first, "prompt_tokens_total", model=NAME) == 5
    assert value(second, "prompt_tokens_total", model=NAME) is None
