import pytest

from fusionroute.config import GenerationSettings
from fusionroute.engine.scheduler import Scheduler
from fusionroute.engine.sequence import Sequence
from fusionroute.errors import RequestTooLargeError


def sequence(length: int) -> Sequence:
    return Sequence([1], GenerationSettings(max_new_tokens=length - 1))


def test_the_longest_promise_times_the_rows_stays_within_the_limit() -> None:
    scheduler = Scheduler(max_batch=10, token_limit=30)
    arrived = [sequence(length) for length in (5, 10, 10, 5)]
    for one in arrived:
        scheduler.add(one)
    scheduler.admit()
    assert scheduler.running == arrived[:3]
    scheduler.remove(arrived[0])
    scheduler.admit()
    assert scheduler.running == arrived[1:]


def test_nobody_overtakes() -> None:
    scheduler = Scheduler(max_batch=10, token_limit=12)
    first, long, short = sequence(6), sequence(12), sequence(2)
    for one in (first, long, short):
        scheduler.add(one)
    scheduler.admit()
    assert scheduler.running == [first]


def test_the_batch_is_bounded() -> None:
    scheduler = Scheduler(max_batch=2, token_limit=1000)
    for _ in range(3):
        scheduler.add(sequence(5))
    scheduler.admit()
    assert (len(scheduler.running), len(scheduler.waiting)) == (2, 1)


def test_what_could_never_run_is_refused() -> None:
    with pytest.raises(RequestTooLargeError, match="need 13 cached tokens but the limit is 12"):
        Scheduler(max_batch=2, token_limit=12).add(sequence(13))


def test_a_waiting_sequence_can_be_removed() -> None:
    scheduler = Scheduler(max_batch=2, token_limit=12)
    one = sequence(5)
    scheduler.add(one)
    scheduler.remove(one)
    assert not scheduler.waiting
