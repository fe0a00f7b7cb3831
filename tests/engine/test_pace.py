"""How far drafting pays, by a clock that the test winds."""

import random
import sys
import threading

import pytest

import tiny_scripted
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.speculation import SpeculationSettings
from fusionroute.engine.speculation.pace import Luck, Pace, Share
from fusionroute.methods.fusion_route import FusionRoute
from tiny_speculation import CYCLE, A, follows, team

A_PASS = 1.0


class Clock:
    """Time goes by where a model is asked, and nowhere else."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def winds(self, runner, seconds: float = A_PASS) -> None:
        read = runner.read

        def slow(*arguments):
            self.now += seconds
            return read(*arguments)

        runner.read = slow


WRONG = (2, 0, 1, 1)  # never what CYCLE says


def paced(drafter: str, router=None, expert=None, draft=None) -> tuple[FusionRoute, Clock]:
    right = follows(*CYCLE, certainty=0.999)
    settings = SpeculationSettings(drafter=drafter, model="scripted" if draft else None, max_draft=8)
    made = FusionRoute(
        team(router or right, expert or right),
        speculation=settings,
        draft_model=None if draft is None else tiny_scripted.bigram(draft),
    )
    clock = Clock()
    for runner in made.runners:
        clock.winds(runner, A_PASS / 4 if runner.name == "draft model" else A_PASS)
    assert made.speculation.pace is not None
    made.speculation.pace.clock = clock
    return made, clock


def seconds(made: FusionRoute, clock: Clock, answers: int = 4, new: int = 50) -> float:
    engine, before = Engine(made), clock.now
    for _ in range(answers):
        engine.generate([[A]], GenerationSettings(max_new_tokens=new))
    return (clock.now - before) / (answers * new)


PLAIN = 2 * A_PASS  # a token, by the router and an expert


def test_a_router_that_is_right_drafts_far() -> None:
    made, clock = paced("router")
    assert seconds(made, clock) < 0.62 * PLAIN  # in rounds of nine tokens ten passes: 0.56
    assert made.kept > 0.95 * (made.drafted or 0)


@pytest.mark.parametrize("certainty", [0.5, 0.95])
def test_a_hopeless_router_is_turned_off(certainty: float) -> None:
    made, clock = paced("router", router=follows(*WRONG, certainty=certainty), expert=follows(*CYCLE, certainty=0.9999))
    first = seconds(made, clock)
    assert first <= 1.05 * PLAIN
    drafted = made.drafted
    assert seconds(made, clock) <= 1.01 * PLAIN
    assert made.drafted == drafted, "nothing more is drafted"


def test_hopeless_copies_are_turned_off() -> None:
    # after a comes one or the other, drawn anew each time, so that what was before says little
    made, clock = paced("ngram", router=[[0.25] * 4] * 4, expert=[[0.25] * 4] * 4)
    engine, before = Engine(made), clock.now
    for seed in range(6):
        engine.generate([[A]], GenerationSettings(max_new_tokens=50, do_sample=True, seed=seed))
    assert (clock.now - before) / 300 <= 1.05 * PLAIN


def test_a_hopeless_model_is_turned_off_and_tried_again_now_and_then() -> None:
    made, clock = paced("model", draft=follows(*WRONG))
    assert seconds(made, clock) <= 1.05 * PLAIN
    asked = made.speculation.runners[0].passes
    assert seconds(made, clock, answers=8) <= 1.02 * PLAIN
    assert made.speculation.runners[0].passes > asked


def test_a_model_that_becomes_useful_is_turned_on_again() -> None:
    made, clock = paced("model", draft=follows(*WRONG))
    seconds(made, clock)
    assert made.kept == 0
    made.speculation.runners[0].model.load_state_dict(tiny_scripted.bigram(follows(*CYCLE)).state_dict())
    seconds(made, clock, answers=12)
    assert seconds(made, clock) < 0.7 * PLAIN


def test_a_router_that_becomes_useful_is_turned_on_again() -> None:
    """It is heard while it is off, at no cost."""
    made, clock = paced("router", router=follows(*WRONG, certainty=0.95), expert=follows(*CYCLE, certainty=0.9999))
    seconds(made, clock)
    made.router.model.lm.load_state_dict(tiny_scripted.bigram(follows(*CYCLE)).state_dict())
    seconds(made, clock, answers=6)
    assert seconds(made, clock) < 0.65 * PLAIN


def known(**durations: float) -> Pace:
    pace = Pace(8, is_free=True)
    for name, taken in durations.items():
        for _ in range(3):
            pace.observe(1, int(name.removeprefix("of")), taken)
    return pace


def luck(first: float, later: float) -> Luck:
    return Luck(Share(1000 * first, 1000.0), Share(1000 * later, 1000.0))


def test_the_length_is_the_one_of_most_tokens_a_second() -> None:
    pace = known(of0=1.0, of1=1.2, of2=1.4, of3=1.6, of4=1.8, of6=2.9, of8=4.0)
    assert pace.length([luck(0.95, 0.95)], [8]) == 4  # 4.5 tokens in 1.8 seconds; 7.4 in 4
    assert pace.length([luck(0.5, 0.1)], [8]) == 1  # 1.5 tokens in 1.2; 1.55 in 1.4
    assert pace.length([luck(0.1, 0.1)], [8]) == 0
    assert pace.length([luck(0.95, 0.95)], [2]) == 2  # there is no more to draft
    assert pace.length([luck(0.95, 0.95)], [0]) == 0


def test_drafts_that_have_begun_well_go_on_well() -> None:
    mine = luck(0.0, 0.9)
    pace = known(of0=1.0, of4=1.3)
    assert pace.length([mine], [8]) == 0
    mine.in_run = True
    assert pace.length([mine], [8]) >= 4


def test_lengths_are_those_of_the_ladder() -> None:
    pace = Pace(5, is_free=True)
    assert pace.length([luck(1.0, 1.0)], [5]) == 0, "nothing was measured"
    for _ in range(3):
        pace.observe(1, 0, 1.0)
    assert pace.length([luck(1.0, 1.0)], [5]) == 4
    assert pace.length([luck(1.0, 1.0)], [3]) == 3


def test_what_drafts_bring_is_counted_to_their_limits() -> None:
    pace = Pace(8, is_free=True)
    pace.luck = luck(0.5, 0.5)
    found = pace._expected([luck(0.5, 0.8), luck(0.9, 0.9)], [8, 1], [1, 2, 4])
    mine = [1 + 0.5, 1 + 0.5 * (1 + 0.8), 1 + 0.5 * (1 + 0.8 + 0.64 + 0.512)]
    assert found == pytest.approx([each + 1.9 for each in mine], rel=1e-2)


def test_a_pace_may_be_shared_by_threads() -> None:
    """More kinds of rounds than fit the time until they are forgotten, so that what is known grows and shrinks."""
    pace, errors = Pace(16, is_free=True), list[BaseException]()

    def write(seed: int) -> None:
        dice = random.Random(seed)
        try:
            for _ in range(400):
                batch = dice.choice((1, 2, 4, 8, 16, 32, 64))
                length = pace.length([pace.new_luck()] * batch, [dice.randint(1, 16)] * batch)
                pace.observe(batch, length, dice.random())
                pace.accept(pace.new_luck(), 1, has_failed=True)
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not errors


def test_a_batch_drafts_if_that_pays_for_all_together() -> None:
    pace = Pace(4, is_free=True)
    for length in (0, 1, 2, 3, 4):
        for _ in range(3):
            pace.observe(4, length, 1.0 + length / 4)
    good, bad = luck(0.9, 0.9), luck(0.0, 0.0)
    assert pace.length([good] * 4, [4] * 4) == 4
    assert pace.length([good, bad, bad, bad], [4] * 4) == 0


def test_luck_tells_first_tokens_from_later_ones() -> None:
    mine = Luck(Share(0.0, 0.0), Share(0.0, 0.0))
    mine.add(3, has_failed=True, memory=1.0)
    assert mine == Luck(Share(1.0, 1.0), Share(2.0, 3.0), in_run=False)
    mine.add(0, has_failed=True, memory=1.0)
    assert mine == Luck(Share(1.0, 2.0), Share(2.0, 3.0), in_run=False)
    mine.add(2, has_failed=False, memory=1.0)
    assert mine == Luck(Share(2.0, 3.0), Share(3.0, 4.0), in_run=True)
    mine.add(0, has_failed=True, memory=1.0)  # it was in a run, which ends here
    assert mine == Luck(Share(2.0, 3.0), Share(3.0, 5.0), in_run=False)


def test_what_was_measured_long_ago_is_measured_again() -> None:
    pace = known(of0=1.0, of1=9.0)
    assert pace.length([luck(0.9, 0.9)], [1]) == 0
    for _ in range(450):
        pace.observe(1, 0, 1.0)
    assert pace.length([luck(0.9, 0.9)], [1]) == 1
