"""Engines over the same models: one queue, one limit, and each writes what it would write alone."""

import random

import pytest

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine, shared_scheduler
from fusionroute.engine.method import Method
from fusionroute.engine.probe import bytes_per_token
from fusionroute.engine.runner import Runner
from fusionroute.methods.averaging import Averaging
from fusionroute.methods.collab import Collab
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.single import Single
from fusionroute.team import Team


class OneRunnerEach:
    """Gives every model one runner, whoever asks."""

    def __init__(self) -> None:
        self.runners: dict[int, Runner] = {}

    def __call__(self, model: object, name: str) -> Runner:
        return self.runners.setdefault(id(model), Runner(model, name))


@pytest.fixture(scope="module")
def team() -> Team:
    return tiny.team()


def methods(team: Team, make_runner: object = Runner) -> list[Method]:
    return [
        FusionRoute(team, make_runner=make_runner),
        FusionRoute(team, complement=False, make_runner=make_runner),
        Single(team.experts["math"], "math", make_runner=make_runner),
        Averaging(team.experts, make_runner=make_runner),
    ]


def sharing(team: Team, **limits: object) -> tuple[list[Engine], OneRunnerEach]:
    one = OneRunnerEach()
    made = methods(team, one)
    scheduler = shared_scheduler(made, **limits)
    return [Engine(method, team.tokenizer, scheduler=scheduler) for method in made], one


def requests(count: int, seed: int) -> list[tuple[list[int], GenerationSettings]]:
    made = []
    for at, prompt in enumerate(tiny.prompts(count, seed=seed)):
        options: dict = {"max_new_tokens": 3 + at * 5 % 14}
        if at % 3 == 1:
            options |= {"do_sample": True, "temperature": 0.8, "seed": at, "frequency_penalty": 0.5}
        if at % 5 == 2:
            options |= {"prompt_logprobs": 1}
        made.append((prompt, GenerationSettings(**options)))
    return made


def test_engines_that_share_models_write_as_they_would_alone(team: Team) -> None:
    asked = requests(48, seed=91)
    alone = [Engine(method, team.tokenizer) for method in methods(team)]
    wanted = [alone[at % 4].generate([prompt], settings)[0] for at, (prompt, settings) in enumerate(asked)]
    per_token = sum(bytes_per_token(model, name) for name, model in team.models.items())
    limit = 220 * per_token
    engines, one = sharing(team, max_batch=9, cache_limit=limit)
    assert len(one.runners) == 4
    dice, sequences, cancelled, most = random.Random(4), [], set(), 0
    while len(sequences) < len(asked) or not all(engine.is_idle for engine in engines):
        for prompt, settings in asked[len(sequences) :][: dice.randint(0, 5)]:
            sequences.append(engines[len(sequences) % 4].submit(prompt, settings))
        for engine in engines:
            engine.step()
            running = engine.scheduler.running
            most = max(most, len({sequence.owner for sequence in running}))
            assert len(running) <= 9
            assert len(running) * max((each.max_length for each in running), default=0) <= 220
            assert sum(runner.cache.nbytes for runner in one.runners.values()) <= limit
        if dice.random() < 0.3:
            at = dice.randrange(len(sequences)) if sequences else 0
            if sequences and not sequences[at].is_finished:
                engines[at % 4].cancel(sequences[at])
                cancelled.add(at)
    assert most == 4, "all four must have run together"
    assert 3 < len(cancelled) < 24
    for at, (sequence, completion) in enumerate(zip(sequences, wanted, strict=True)):
        if at in cancelled:
            assert sequence.finish_reason == "cancelled"
            assert sequence.output_ids == completion.token_ids[: sequence.position]
        else:
            assert (sequence.output_ids, sequence.text) == (completion.token_ids, completion.text)
            assert [each.expert for each in sequence.trace] == [each.expert for each in completion.trace]
    assert not any(runner.cache.lengths for runner in one.runners.values())


def test_a_step_admits_for_all_and_writes_its_own(team: Team) -> None:
    (fused, _, single, _), _ = sharing(team)
    mine = fused.submit([10, 11], GenerationSettings(max_new_tokens=3, ignore_eos=True))
    assert (fused.is_idle, single.is_idle) == (False, True)
    its = single.submit([10, 11], GenerationSettings(max_new_tokens=2, ignore_eos=True))
    fused.step()
    assert (mine.position, its.position) == (1, 0)
    assert fused.scheduler.running == [mine, its]
    assert (fused.running, single.running) == ([mine], [its])
    assert single.step() == []
    assert single.step() == [its]
    assert (single.is_idle, fused.is_idle) == (True, False)
    fused.cancel(mine)
    assert fused.is_idle


def test_places_go_by_arrival_whoever_asks(team: Team) -> None:
    (fused, routed, single, average), _ = sharing(team, max_batch=2)
    settings = GenerationSettings(max_new_tokens=1, ignore_eos=True)
    arrived = [engine.submit([10, 11], settings) for engine in (single, fused, average, routed)]
    single.step()
    assert fused.scheduler.running == arrived[1:2]
    single.step()
    assert fused.scheduler.running == arrived[1:3]


def test_the_neediest_method_sets_the_rows(team: Team) -> None:
    one = OneRunnerEach()
    greedy = Collab(team.experts, candidates=3, make_runner=one)
    per_token = sum(bytes_per_token(model, name) for name, model in team.models.items())
    scheduler = shared_scheduler([FusionRoute(team, make_runner=one), greedy], cache_limit=90 * per_token)
    assert scheduler.token_limit == 30
    assert {runner.cache.token_limit for runner in one.runners.values()} == {90}
    assert shared_scheduler([FusionRoute(team)], cache_limit=90 * per_token).token_limit == 90


def test_a_sequence_made_elsewhere_is_not_taken(team: Team) -> None:
    (fused, routed, *_), _ = sharing(team)
    with pytest.raises(AssertionError, match="sequences that it has made"):
        fused.add(routed.sequence([10], GenerationSettings()))
