"""The worker: answers are the library's, nobody disturbs anybody, and whoever leaves leaves nothing behind."""

import gc
import random
import threading
import time
import weakref

import pytest
import torch

import tiny
import tiny_server
from fusionroute import Team
from fusionroute.errors import RequestTooLargeError
from fusionroute.server.metrics import Metrics
from fusionroute.server.offer import Offer
from fusionroute.server.settings import ServerSettings
from fusionroute.server.ticket import SHUTDOWN, TIMEOUT
from fusionroute.server.worker import FAILURE, BusyError, StoppingError, Worker, WorkerDiedError, retry_after
from tiny_server import NAME, Asked, ask, gauges, running, sequences, wait_until

SAMPLED = {"do_sample": True, "temperature": 1.5, "top_k": 40, "seed": 11}
LONG = {"max_new_tokens": 140, "ignore_eos": True}


@pytest.fixture(scope="module")
def team() -> Team:
    return tiny.team(prompt="chat_template")


@pytest.fixture(scope="module")
def offer(team: Team) -> Offer:
    return tiny_server.offer(team)


def is_at_rest(worker: Worker) -> bool:
    return not worker._unfinished and not any(gauges(worker).values())


# what is written


@pytest.mark.parametrize("options", [{}, SAMPLED, {"stop": ["a", "\n"]}, {"logprobs": 3}])
def test_joined_updates_are_the_completion(team: Team, offer: Offer, options: dict) -> None:
    prompts = ["hi", "été", "x" * 20]
    wanted = team.generate(prompts, max_new_tokens=24, **options)
    with running(offer) as worker:
        asked = ask(worker, *prompts, max_new_tokens=24, **options).wait()
    for at, completion in enumerate(wanted):
        assert asked.text(at) == completion.text
        assert asked.ids(at) == completion.token_ids
        assert (asked.reason(at), asked.error(at)) == (completion.finish_reason, None)
        found = [record for update in asked.of(at) for record, _ in update.written]
        assert [record.expert for record in found] == [record.expert for record in completion.trace]
        assert [record.top_logprobs and record.top_logprobs[0][0] for record in found] == [
            record.top_logprobs and record.top_logprobs[0][0] for record in completion.trace
        ]


def test_other_ids_write_as_their_methods_do(team: Team, offer: Offer) -> None:
    (wanted,) = team.generate(["hi"], complement=False, max_new_tokens=24)
    with running(offer) as worker:
        found = {id: ask(worker, "hi", model=id, max_new_tokens=24) for id in offer}
        texts = {id: asked.wait().text() for id, asked in found.items()}
    assert texts[f"{NAME}/no-complement"] == wanted.text
    assert texts[NAME] == team.generate(["hi"], max_new_tokens=24)[0].text
    assert len(set(texts.values())) > 3  # they are not one and the same


def test_all_updates_of_a_round_come_in_one_call(offer: Offer) -> None:
    with running(offer) as worker:
        asked = ask(worker, "hi", "ho", "hu", max_new_tokens=10, ignore_eos=True).wait()
    assert asked.rounds == 10
    assert len(asked.updates) == 30


def test_prompt_logprobs_come_with_the_first_update_alone(offer: Offer) -> None:
    with running(offer) as worker:
        asked = ask(worker, "hi", max_new_tokens=3, ignore_eos=True, prompt_logprobs=1).wait()
    first, *others = asked.updates
    assert [id for id, _, _ in first.prompt_logprobs] == offer[NAME].prompt_format.encode("hi")
    assert all(update.prompt_logprobs is None for update in others)


def test_what_was_held_back_for_a_stop_string_is_shown_in_the_end(team: Team, offer: Offer) -> None:
    (plain,) = team.generate(["hi"], max_new_tokens=12, ignore_eos=True)
    begun = plain.text[-1] + "never"  # the last character may begin it, so it is held back
    with running(offer) as worker:
        asked = ask(worker, "hi", max_new_tokens=12, ignore_eos=True, stop=[begun]).wait()
        assert asked.text() == plain.text
        cut = ask(worker, "hi", stop=[begun], **LONG).wait_for_token()
        worker.begin_stopping(0)
        cut.wait()
    assert cut.error() == SHUTDOWN
    assert cut.text() == team.tokenizer.decode(cut.ids(), skip_special_tokens=True)


def test_survivors_among_random_cancels_write_what_they_write_alone(team: Team, offer: Offer) -> None:
    prompts = tiny.prompts(24, seed=5)
    settings = [{} if at % 3 else {**SAMPLED, "seed": at} for at in range(24)]
    models = [list(offer)[at % 2 * 4] for at in range(24)]  # FusionRoute and an expert alone, in turn
    with running(offer) as worker:
        wanted = [
            ask(worker, prompt, model=model, max_new_tokens=16, **each).wait()
            for prompt, model, each in zip(prompts, models, settings, strict=True)
        ]
        asked: dict[int, Asked] = {}

        def client(mine: range) -> None:
            chance = random.Random(mine.start)
            for at in mine:
                asked[at] = ask(worker, prompts[at], model=models[at], max_new_tokens=16, **settings[at])
                time.sleep(chance.random() * 0.02)
                if at % 4 == 1:
                    asked[at].ticket.cancel()

        threads = [threading.Thread(target=client, args=(range(first, 24, 4),)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for at in range(24):
            if at % 4 != 1:
                assert asked[at].wait().ids() == wanted[at].ids(), at
                assert asked[at].text() == wanted[at].text()
        wait_until(lambda: is_at_rest(worker), "something is left behind")
        for at in range(1, 24, 4):  # an answer that was cut short is the beginning of the whole one
            assert wanted[at].ids()[: len(asked[at].ids())] == asked[at].ids()


# who leaves


def test_a_cancelled_ticket_frees_its_place_before_the_next_step(team: Team) -> None:
    offer = tiny_server.offer(team, max_batch=1)
    with running(offer) as worker:
        first = ask(worker, "hi", **LONG).wait_for_token()
        second = ask(worker, "ho", max_new_tokens=2, ignore_eos=True)
        seen = len(first.ids())
        first.ticket.cancel()
        second.wait()
        rounds = len(first.ids())
        assert rounds <= seen + 1  # at most the step that was under way
        wait_until(lambda: is_at_rest(worker))
        assert len(first.ids()) == rounds
        assert not first.ended.is_set()
        first.ticket.cancel()  # too late, and no harm
        second.ticket.cancel()
        assert ask(worker, "hi", max_new_tokens=2, ignore_eos=True).wait().reason() == "length"


def test_a_waiting_ticket_can_be_cancelled_too(team: Team) -> None:
    with running(tiny_server.offer(team, max_batch=1)) as worker:
        first = ask(worker, "hi", **LONG).wait_for_token()
        waiting = ask(worker, "ho", max_new_tokens=2)
        wait_until(lambda: gauges(worker)["fusionroute_sequences_waiting"] == 1)
        waiting.ticket.cancel()
        wait_until(lambda: gauges(worker)["fusionroute_sequences_waiting"] == 0)
        assert gauges(worker)["fusionroute_sequences_running"] == 1
        first.ticket.cancel()
        wait_until(lambda: is_at_rest(worker))
    assert waiting.updates == []


def test_whoever_cannot_be_told_is_cancelled(offer: Offer, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: list) -> None:
        raise RuntimeError("the loop is closed")

    with running(offer) as worker:
        worker.submit(NAME, sequences(worker, ["hi"], **LONG), broken)
        wait_until(lambda: is_at_rest(worker))
        assert ask(worker, "hi", max_new_tokens=2, ignore_eos=True).wait().reason() == "length"
    assert "the loop is closed" in caplog.text


def test_nothing_of_a_request_stays(team: Team) -> None:
    offer = tiny_server.offer(team, max_batch=2)
    with running(offer) as worker:
        alive: list[weakref.ref] = []
        tickets = []
        for at, id in enumerate(offer):
            made = sequences(worker, ["hi", "ho"], id, max_new_tokens=100 if at % 2 else 9, ignore_eos=True)
            alive += [weakref.ref(sequence) for sequence in made]
            asked = Asked(unfinished={0, 1})
            alive += [weakref.ref(asked)]
            tickets.append(worker.submit(id, made, asked.on_update))
            if at % 2:
                asked.wait_for_token()
                tickets[-1].cancel()
            else:
                asked.wait()
            del made, asked
        wait_until(lambda: is_at_rest(worker))
        gc.disable()
        try:  # without the garbage collector: there are no cycles either
            wait_until(lambda: not any(ref() for ref in alive), "a request is kept alive")
        finally:
            gc.enable()
        assert tickets
        assert not worker._open
        assert not worker._arrived
        assert not worker._cancelled
        assert not worker._unfinished
        assert all(not runner.cache.lengths for runner in offer.runners)


# who does not get in


def test_a_full_queue_says_when_to_come_back(team: Team) -> None:
    with running(tiny_server.offer(team, max_batch=2), max_waiting=3) as worker:
        taken = [ask(worker, "hi", **LONG) for _ in range(5)]  # two places and three who wait, however fast they come
        with pytest.raises(BusyError, match="try again in") as caught:
            ask(worker, "hi", max_new_tokens=1)
        assert caught.value.retry_after >= 1
        taken[0].ticket.cancel()
        wait_until(lambda: worker._unfinished == 4)
        last = ask(worker, "hi", max_new_tokens=1, ignore_eos=True)
        for asked in taken[1:]:
            asked.ticket.cancel()
        assert last.wait().reason() == "length"


def test_without_a_queue_only_free_places_are_given(team: Team) -> None:
    with running(tiny_server.offer(team, max_batch=1), max_waiting=0) as worker:
        first = ask(worker, "hi", **LONG)
        with pytest.raises(BusyError):
            ask(worker, "hi", max_new_tokens=1)
        first.ticket.cancel()
        wait_until(lambda: not worker._unfinished)
        assert ask(worker, "hi", max_new_tokens=1).wait().reason() == "length"


def test_a_queue_that_waits_for_memory_is_full_too(team: Team) -> None:
    offer = tiny_server.offer(team, max_batch=50)
    offer.scheduler.token_limit = 160  # room for one long answer
    with running(offer, max_waiting=1) as worker:
        first = ask(worker, "hi", **LONG).wait_for_token()
        second = ask(worker, "hi", max_new_tokens=100, ignore_eos=True)
        wait_until(lambda: worker._places == 1)
        with pytest.raises(BusyError):
            ask(worker, "hi", max_new_tokens=1)
        first.ticket.cancel()
        assert second.wait().reason() == "length"


def test_requests_of_several_answers_wait_as_whole_ones(team: Team) -> None:
    with running(tiny_server.offer(team, max_batch=2), max_waiting=3) as worker:
        first = ask(worker, "hi", "ho", "hu", **LONG)  # one of them waits
        with pytest.raises(BusyError):
            ask(worker, "hi", "ho", "hu", max_new_tokens=1)  # four would
        second = ask(worker, "hi", "ho", max_new_tokens=1)  # three do
        with pytest.raises(BusyError):
            ask(worker, "hi", max_new_tokens=1)
        first.ticket.cancel()
        second.wait()


def test_a_request_larger_than_the_queue_comes_in_when_nobody_waits(team: Team) -> None:
    with running(tiny_server.offer(team, max_batch=1), max_waiting=1) as worker:
        first, second = ask(worker, "hi", **LONG), ask(worker, "hi", **LONG)
        with pytest.raises(BusyError):
            ask(worker, "hi", "ho", "hu", max_new_tokens=1)
        second.ticket.cancel()
        wait_until(lambda: worker._unfinished == 1)
        large = ask(worker, "hi", "ho", "hu", max_new_tokens=1)
        first.ticket.cancel()
        assert [large.wait().reason(at) for at in range(3)] == ["length"] * 3


@pytest.mark.parametrize(
    ("promised", "tokens", "seconds", "most", "expected"),
    [
        (100, 0, 0, 600, 1),  # nothing was measured
        (0, 100, 30, 600, 1),
        (100, 100, 30, 600, 30),
        (101, 100, 30, 600, 31),
        (100, 1, 30, 500, 500),  # nobody may take longer
        (100, 1, 30, 0.1, 1),
    ],
)
def test_the_estimate_follows_from_what_is_promised(
    promised: int, tokens: float, seconds: float, most: float, expected: int
) -> None:
    assert retry_after(promised, tokens, seconds, most) == expected


def test_the_rate_is_measured(team: Team) -> None:
    with running(tiny_server.offer(team)) as worker:
        assert worker.retry_after == 1
        began = time.monotonic()
        ask(worker, "hi", "ho", max_new_tokens=120, ignore_eos=True).wait()
        passed = time.monotonic() - began
    assert 0 < worker._seconds / worker._tokens < passed / 120


def test_what_could_never_run_is_refused_and_nothing_of_it_queued(team: Team) -> None:
    offer = tiny_server.offer(team)
    offer.scheduler.token_limit = 60
    with running(offer) as worker:
        made = sequences(worker, ["hi"], max_new_tokens=10) + sequences(worker, ["hi"], max_new_tokens=100)
        with pytest.raises(RequestTooLargeError, match="the limit is 60"):
            worker.submit(NAME, made, lambda _: None)
        assert is_at_rest(worker)


def test_time_is_counted_from_submission_waiting_included(team: Team) -> None:
    with running(tiny_server.offer(team, max_batch=1), time_limit=0.3) as worker:
        slow, began = [Asked(unfinished={0}) for _ in range(40)], time.monotonic()
        for asked in slow:  # all came at one time, however long it takes to queue them
            worker.submit(NAME, sequences(worker, ["hi"], **LONG), asked.on_update, arrived_at=began)
        for asked in slow:
            asked.wait()
        ends = [asked.error() for asked in slow]
        assert ends[0] in (None, TIMEOUT)
        assert ends[-1] == TIMEOUT
        assert slow[-1].reason() == "error"
        assert slow[-1].ids() == []
        wait_until(lambda: is_at_rest(worker))
        assert ask(worker, "hi", max_new_tokens=1).wait().error() is None


def test_time_is_counted_from_arrival(offer: Offer) -> None:
    with running(offer, time_limit=5) as worker:
        late, asked = sequences(worker, ["hi"], **LONG), Asked(unfinished={0})
        worker.submit(NAME, late, asked.on_update, arrived_at=time.monotonic() - 6)
        assert (asked.wait().error(), asked.ids()) == (TIMEOUT, [])
        almost, asked = sequences(worker, ["hi"], max_new_tokens=1), Asked(unfinished={0})
        worker.submit(NAME, almost, asked.on_update, arrived_at=time.monotonic() - 3)
        assert asked.wait().error() is None
        waited = worker.metrics.registry.get_sample_value(
            "fusionroute_time_to_first_token_seconds_sum", {"model": NAME}
        )
    assert waited > 3


# the end


def test_stopping_lets_what_runs_finish(team: Team, offer: Offer) -> None:
    with running(offer) as worker:
        asked = ask(worker, "hi", **LONG).wait_for_token()
        worker.begin_stopping(60)
        assert worker.is_stopping
        assert worker.is_alive
        with pytest.raises(StoppingError, match="shutting down"):
            ask(worker, "hi")
        began = time.monotonic()
        worker.stop(60)
        assert time.monotonic() - began < 30
        assert not worker.is_alive
        assert not worker.has_died
        assert (asked.reason(), asked.error(), len(asked.ids())) == ("length", None, 140)


def test_stopping_ends_the_rest_when_grace_is_over(team: Team) -> None:
    with running(tiny_server.offer(team, max_batch=1)) as worker:
        first = ask(worker, "hi", **LONG).wait_for_token()
        others = [ask(worker, "hi", **LONG) for _ in range(30)]
        worker.begin_stopping(600)
        worker.stop(0.02)  # a second, shorter word
        assert not worker.is_alive
        assert is_at_rest(worker)
        assert first.ended.is_set()
        assert first.error() in (None, SHUTDOWN)
        assert all(asked.ended.is_set() for asked in others)
        assert (others[-1].error(), others[-1].reason(), others[-1].ids()) == (SHUTDOWN, "error", [])
        worker.stop(0)  # once more is no harm


def test_a_worker_that_was_not_started_takes_nothing_and_can_be_stopped(offer: Offer) -> None:
    worker = Worker(offer, ServerSettings(), Metrics())
    with pytest.raises(StoppingError, match="does not run"):
        ask(worker, "hi")
    worker.stop(0)
    assert not worker.is_alive
    assert is_at_rest(worker)


def test_a_worker_with_nothing_to_do_sleeps(offer: Offer) -> None:
    with running(offer) as worker:
        ask(worker, "hi", max_new_tokens=2).wait()
        wait_until(lambda: is_at_rest(worker))
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.1


# models that fail


def test_a_method_that_raises_ends_its_own_sequences_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    team = tiny.team(prompt="chat_template")
    options = {"max_new_tokens": 60, "ignore_eos": True}
    (wanted,) = team.generate(["ho"], **options)
    calls: list[int] = []  # rows

    def out_of_memory(_, inputs: tuple) -> None:
        """In the middle of a pass, in the model that both engines use, for the engine with two sequences alone."""
        calls.append(len(inputs[0]))
        if calls[-1] == 2 and calls.count(2) == 4:
            raise RuntimeError("no memory left at /secret/path")

    hook = team.router.lm.model.layers[1].mlp.register_forward_pre_hook(out_of_memory)
    with running(tiny_server.offer(team)) as worker:
        fine = ask(worker, "ho", **options).wait_for_token()
        broken = ask(worker, "hi", "hu", model=f"{NAME}/router", **options).wait()
        assert not fine.ended.is_set()
        after = ask(worker, "ho", model=f"{NAME}/router", **options).wait()
        fine.wait()
        wait_until(lambda: is_at_rest(worker))
        hook.remove()
        alone = ask(worker, "ho", model=f"{NAME}/router", **options).wait()
    assert [(broken.reason(at), broken.error(at), len(broken.ids(at))) for at in (0, 1)] == [("error", FAILURE, 3)] * 2
    assert fine.ids() == wanted.token_ids
    assert after.ids() == alone.ids()
    assert "secret" not in FAILURE
    assert "no memory left" in caplog.text


def test_sequences_that_wait_behind_a_failing_step_get_their_turn() -> None:
    team = tiny.team(prompt="chat_template")
    with running(tiny_server.offer(team, max_batch=1)) as worker:

        def always(*_) -> None:
            raise RuntimeError("broken")

        hook = team.router.register_forward_hook(always)
        asked = [ask(worker, "hi", max_new_tokens=3) for _ in range(4)]
        assert [each.wait().error() for each in asked] == [FAILURE] * 4
        hook.remove()
        assert ask(worker, "hi", max_new_tokens=3).wait().error() is None
        wait_until(lambda: is_at_rest(worker))


def test_an_engine_that_raises_before_anything_runs_does_not_spin(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    offer = tiny_server.offer(team)
    with running(offer) as worker:

        def admit() -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(offer.scheduler, "admit", admit)
        assert ask(worker, "hi", max_new_tokens=3).wait().error() == FAILURE
        wait_until(lambda: is_at_rest(worker))


def test_a_model_that_returns_no_numbers_is_named(caplog: pytest.LogCaptureFixture) -> None:
    team = tiny.team(prompt="chat_template")
    with torch.no_grad():
        team.experts["math"].get_output_embeddings().weight.fill_(float("nan"))
    with running(tiny_server.offer(team)) as worker:
        broken = ask(worker, "hi", model=f"{NAME}/math", max_new_tokens=5).wait()
        fine = ask(worker, "hi", model=f"{NAME}/code", max_new_tokens=5).wait()
    assert broken.reason() == "error"
    assert "'math' returned NaN" in broken.error()
    assert fine.error() is None


def test_a_worker_that_dies_tells_everybody(offer: Offer, caplog: pytest.LogCaptureFixture) -> None:
    def bug(_) -> None:
        raise RuntimeError("a bug")

    with running(offer) as worker:
        asked = ask(worker, "hi", "ho", **LONG).wait_for_token()
        worker._round = bug  # type: ignore[method-assign]  # of the worker's own, not of a model
        assert (asked.wait().error(0), asked.error(1)) == (FAILURE, FAILURE)
        wait_until(lambda: not worker.is_alive)
        assert worker.has_died
        assert not worker.is_stopping
        with pytest.raises(WorkerDiedError):
            ask(worker, "hi")
        assert is_at_rest(worker)
    assert "the worker has died" in caplog.text
