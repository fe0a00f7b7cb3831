"""Long prompts come in parts: nobody who writes waits, and the same tokens come out."""

import random

import pytest
import torch

import tiny
import tiny_ensemble
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine, shared_scheduler
from fusionroute.engine.prefill import (
    ACCELERATOR_CHUNK,
    CPU_CHUNK,
    FEW,
    Budget,
    chunk_for,
    read_a_part,
    too_far_behind,
)
from fusionroute.engine.reference import UncachedRunner, reference
from fusionroute.engine.runner import Reading, Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.speculation import SpeculationSettings
from fusionroute.errors import SettingsError
from fusionroute.methods.averaging import Averaging, AveragingAcross
from fusionroute.methods.collab import Collab
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.safe import Safe
from fusionroute.methods.single import Single

LONG, CHUNK = 4000, 256
WRITING = GenerationSettings(max_new_tokens=60, ignore_eos=True)
BRIEF = GenerationSettings(max_new_tokens=4, ignore_eos=True)


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(tiny.SPECIAL), tiny.VOCABULARY, (count,), generator=generator).tolist()


@pytest.fixture(scope="module")
def team():
    return tiny.team()


@pytest.fixture(scope="module")
def long_team():
    """Two experts with a context of 4,100 tokens."""
    experts = {name: tiny.language_model(seed=at, max_position_embeddings=4100) for at, name in enumerate("ab")}
    return tiny.Team(
        router=tiny.router(num_experts=2, max_position_embeddings=4100), experts=experts, tokenizer=tiny.tokenizer()
    )


def watch(engine: Engine, running: list[Sequence], arriving: list[Sequence]) -> tuple[list[Sequence], int]:
    """Step until all of ``arriving`` write: in which order they began, and the most that a model read in a round."""
    began: list[Sequence] = []
    most = 0
    while len(began) < len(arriving):
        written = [sequence.position for sequence in running]
        read = [runner.tokens_read for runner in engine.method.runners]
        engine.step()
        assert [sequence.position for sequence in running] == [at + 1 for at in written], "nobody sits a round out"
        most = max(most, *(runner.tokens_read - at for runner, at in zip(engine.method.runners, read, strict=True)))
        began += [sequence for sequence in arriving if sequence.position and sequence not in began]
    return began, most


def test_nobody_who_writes_waits_for_a_long_prompt(long_team) -> None:
    prompt = tokens(LONG, seed=0)
    (wanted,) = Engine(FusionRoute(long_team)).generate([prompt], BRIEF)
    plain = Engine(FusionRoute(long_team)).generate([[10 + at] * 3 for at in range(8)], WRITING)
    engine = Engine(FusionRoute(long_team), prefill_chunk=CHUNK)
    running = [engine.submit([10 + at] * 3, WRITING) for at in range(8)]
    engine.step()
    late = engine.submit(prompt, BRIEF)
    _, most = watch(engine, running, [late])
    assert most <= CHUNK + 8 * FEW
    engine.run([*running, late])
    assert late.output_ids == wanted.token_ids
    assert [sequence.output_ids for sequence in running] == [completion.token_ids for completion in plain]
    assert engine.is_idle


def test_prompts_come_in_their_order_of_arrival(team) -> None:
    engine = Engine(Single(team.experts["math"], "math"), prefill_chunk=10)
    running = [engine.submit([10 + at] * 3, WRITING) for at in range(2)]
    engine.step()
    arriving = [engine.submit(tokens(length, seed=length), BRIEF) for length in (70, 5, 30)]
    began, most = watch(engine, running, arriving)
    assert began == arriving
    assert most <= 10 + 4 * FEW


def test_a_round_reads_one_chunk_whichever_model_reads_it(team) -> None:
    """First the router, then the expert that it chose, then what the next prompt needs; never two of them at once."""
    engine = Engine(FusionRoute(team), prefill_chunk=10)
    engine.submit([10, 11], WRITING)
    engine.step()
    parts: list[tuple[str, int]] = []
    for runner in engine.method.runners:
        runner.read_ahead = lambda handles, counts, runner=runner: (  # type: ignore[method-assign]
            parts.append((runner.name, *counts)),
            Runner.read_ahead(runner, handles, counts),
        )
    long, short = engine.submit(tokens(75, seed=1), BRIEF), engine.submit(tokens(60, seed=2), BRIEF)
    readers = set()
    while not short.position:
        parts.clear()
        engine.step()
        assert sum(count for _, count in parts) <= 10
        assert long.position or not short.position, "first come, first served"
        readers |= {name for name, _ in parts}
    assert len(readers) > 1
    engine.run([long, short])


def test_a_prompt_of_which_one_token_is_left_waits_for_nobody(team) -> None:
    engine = Engine(FusionRoute(team), prefill_chunk=10)
    engine.submit([10, 11], WRITING)
    engine.step()
    engine.submit(tokens(90, seed=1), BRIEF)
    single = engine.submit([12], BRIEF)
    engine.step()
    assert single.position == 1


def averaging(team, **make) -> Averaging:
    return Averaging(team.experts, [1, 0, 2], **make)


@pytest.mark.parametrize(
    ("family", "make"), [*((family, FusionRoute) for family in tiny.FAMILIES), ("llama", averaging)]
)
def test_in_parts_equals_the_reference(family: str, make) -> None:
    team = tiny.team(family)
    engine, sequences = Engine(make(team), prefill_chunk=7), []
    for length in (3, 60, 20):
        sequences.append(engine.submit(tokens(length, seed=length), BRIEF.model_copy(update={"max_new_tokens": 9})))
        engine.step()
    engine.run(sequences)
    for sequence in sequences:
        slow = make(team, make_runner=UncachedRunner)
        alone = Engine(slow).sequence(sequence.token_ids[: sequence.prompt_length], sequence.settings)
        assert reference(slow, alone).token_ids == sequence.output_ids


def test_random_traffic_in_parts_equals_whole_prompts(team) -> None:
    dice = random.Random(1)
    prompts = [tokens(dice.choice((2, 30, 90)), seed=at) for at in range(24)]
    settings = GenerationSettings(max_new_tokens=10, ignore_eos=True)
    wanted = Engine(FusionRoute(team)).generate(prompts, settings)
    engine, sequences, left = Engine(FusionRoute(team), max_batch=6, prefill_chunk=9), [], {4, 9, 15}
    while len(sequences) < len(prompts) or not engine.is_idle:
        for prompt in prompts[len(sequences) :][: dice.randint(0, 2)]:
            sequences.append(engine.submit(prompt, settings))
        engine.step()
        for at, sequence in enumerate(sequences):
            if at in left and sequence in engine.scheduler.running and dice.random() < 0.3:
                engine.cancel(sequence)  # some while their prompts are being read
            elif not sequence.is_finished and sequence.position > 3 and dice.random() < 0.05:
                engine.rollback(sequence, sequence.prompt_length + 1)
    for at, (sequence, answer) in enumerate(zip(sequences, wanted, strict=True)):
        if sequence.finish_reason != "cancelled":
            assert sequence.output_ids == answer.token_ids
        else:
            assert at in left
    assert not any(runner.cache.lengths for runner in engine.method.runners)
    assert engine.method._awaited == {}


def test_an_expert_that_is_chosen_late_reads_in_parts(team) -> None:
    """After many tokens by one expert the router picks another, which has read nothing of them."""
    switching = FusionRoute(team)
    engine = Engine(switching, prefill_chunk=20)
    one, other = (engine.submit(tokens(length, seed=length), WRITING) for length in (80, 5))
    code, ask, choices = switching.experts[1], switching.router.read, {one: 0, other: 0}

    def choosing(sequences: list[Sequence], last: int | list[int] = 1) -> Reading:
        reading = ask(sequences, last)
        for row, sequence in enumerate(sequences):
            reading.route_logits[row] = 9 * torch.nn.functional.one_hot(torch.tensor(choices[sequence]), 3)
        return reading

    switching.router.read = choosing  # type: ignore[method-assign]
    for _ in range(3):
        engine.step()
    assert {record.expert for record in (*one.trace, *other.trace)} == {"math"}
    choices[one] = 1
    sat_out = 0
    while one.trace[-1].expert != "code":
        before, heard = (code.tokens_read, one.position, other.position), switching.router.tokens_read
        engine.step()
        assert other.position == before[2] + 1
        assert code.tokens_read - before[0] <= 20
        assert switching.router.tokens_read - heard <= 2, "nobody is asked twice"
        sat_out += one.position == before[1]
    assert sat_out == 5  # one in which the cache grows, then 82 tokens at 20 a round
    assert code.tokens_read == len(one) - 1


@pytest.mark.parametrize("count", [4, 8])
@pytest.mark.parametrize("drafts", [8, 16])
def test_nobody_waits_for_drafts(team, drafts: int, count: int) -> None:
    settings = WRITING.model_copy(update={"max_new_tokens": 20})
    prompts = [[10 + at, 11, 12] for at in range(count)]
    plain = Engine(FusionRoute(team)).generate(prompts, settings)
    made = FusionRoute(team, speculation=SpeculationSettings(max_draft=drafts, adaptive=False))
    engine = Engine(made)
    sequences = [engine.submit(prompt, settings) for prompt in prompts]
    while not engine.is_idle:
        before = [(sequence, sequence.position) for sequence in engine.running]
        engine.step()
        assert all(sequence.position > at for sequence, at in before)
    assert [sequence.output_ids for sequence in sequences] == [completion.token_ids for completion in plain]


@pytest.mark.parametrize("chunk", [FEW, CPU_CHUNK])
def test_texts_of_any_length_get_on_beside_another(team, chunk: int) -> None:
    """Also where an expert that has read nothing is chosen behind just as many tokens as are read in a round."""
    engine = Engine(FusionRoute(team), prefill_chunk=chunk)
    endless = GenerationSettings(max_new_tokens=120, ignore_eos=True)
    sequences = [engine.submit(tokens(length, seed=length), BRIEF) for length in range(2, 2 * chunk)]
    engine.submit([10, 11], endless)
    for _ in range(60):  # of which the first to arrive might miss most
        engine.step()
    assert all(sequence.is_finished for sequence in sequences)


def test_restless_answers_lose_no_rounds(team) -> None:
    def rounds(chunk: int | None) -> int:
        engine, count = Engine(FusionRoute(team), prefill_chunk=chunk), 0
        for at in range(8):
            engine.submit([10 + at, 11, 12] * 5, WRITING)
        while not engine.is_idle:
            engine.step()
            count += 1
        return count

    assert rounds(CPU_CHUNK) == rounds(10**6) == WRITING.max_new_tokens


def test_the_only_answer_of_one_of_two_engines_gets_on(team) -> None:
    """Nobody else of its own engine writes, and what it drafts is more than a chunk."""
    spec = SpeculationSettings(max_draft=24, adaptive=False)
    methods = [FusionRoute(team, speculation=spec), Single(team.experts["code"], "code")]
    scheduler = shared_scheduler(methods)
    fused, alone = (Engine(method, scheduler=scheduler, prefill_chunk=4) for method in methods)
    prompt, settings = tokens(60, seed=1), GenerationSettings(max_new_tokens=30, ignore_eos=True)
    (wanted,) = Engine(FusionRoute(team)).generate([prompt], settings)
    sequence = fused.submit(prompt, settings)
    alone.submit([10, 11], GenerationSettings(max_new_tokens=120, ignore_eos=True))
    for _ in range(100):
        fused.step()
        alone.step()
    assert sequence.output_ids == wanted.token_ids


def test_a_draft_ends_where_an_expert_has_too_much_to_read(team) -> None:
    """Behind the third drafted token the router picks an expert that has read nothing of a long text."""
    made = FusionRoute(team, speculation=SpeculationSettings(max_draft=6, adaptive=False))
    engine = Engine(made, prefill_chunk=20)
    ask, expert_at = made.router.read, 10**6

    def choosing(sequences: list[Sequence], last: int | list[int] = 1) -> Reading:
        reading = ask(sequences, last)
        for row, sequence in enumerate(sequences):
            expert = int(len(sequence) >= expert_at)
            reading.route_logits[row] = 9 * torch.nn.functional.one_hot(torch.tensor(expert), 3)
        return reading

    made.router.read = choosing  # type: ignore[method-assign]
    one = engine.submit(tokens(80, seed=1), WRITING)
    for _ in range(2):
        engine.step()
    expert_at = len(one) + 3
    asked, said = list[list[int]](), made._ask_experts
    made._ask_experts = lambda sequences, counts, *rest: (asked.append(counts), said(sequences, counts, *rest))[1]
    engine.submit([10, 11], WRITING)
    before, position = made.experts[1].tokens_read, one.position
    engine.step()
    assert asked == [[3, 7]], "its text and two drafted tokens; of the other nothing is taken away"
    assert one.position > position
    assert made.experts[1].tokens_read == before
    while one.trace[-1].expert == "math":
        engine.step()
    assert [record.expert for record in one.trace].index("code") == expert_at - 80


def test_a_chunk_is_spent_once_in_a_round(team) -> None:
    """What is read before the round, by whichever model, is no longer to be had within it."""
    model, other = (Runner(team.experts[name], name) for name in ("math", "code"))
    budget = Budget(20)
    waiting, surprising, lagging = (Sequence(tokens(length, seed=length), WRITING) for length in (90, 91, 35))
    read_a_part([(model, waiting), (other, waiting)], budget)
    assert (model.tokens_read, other.tokens_read, budget.left) == (20, 20, 0)
    assert too_far_behind(model, [surprising, lagging], [0, 0], budget) == [0, 1]
    assert too_far_behind(model, [lagging], [15], budget) == [], "nobody waits for drafts"
    read_a_part([(other, surprising)], budget)
    assert other.tokens_read == 20
    assert too_far_behind(model, [surprising, lagging], [0, 0], Budget(20)) == [0]


def test_a_new_prompt_is_read_whole_where_nobody_writes(team) -> None:
    engine = Engine(FusionRoute(team), prefill_chunk=4)
    sequences = [engine.submit(tokens(50, seed=at), BRIEF) for at in range(3)]
    engine.step()
    assert [sequence.position for sequence in sequences] == [1, 1, 1]


def test_answers_that_nobody_watches_are_not_held_up_by_parts(team) -> None:
    engine = Engine(FusionRoute(team), max_batch=2, prefill_chunk=4)
    prompts = [tokens(60, seed=at) for at in range(5)]
    engine.generate(prompts, BRIEF)
    whole = Engine(FusionRoute(team), max_batch=2)
    whole.generate(prompts, BRIEF)
    assert [runner.passes for runner in engine.method.runners] == [runner.passes for runner in whole.method.runners]


def test_sequences_of_another_engine_are_not_delayed_either(team) -> None:
    methods = [FusionRoute(team), Single(team.experts["code"], "code")]
    scheduler = shared_scheduler(methods)
    fused, alone = (Engine(method, scheduler=scheduler, prefill_chunk=10) for method in methods)
    running = fused.submit([10, 11], WRITING)
    fused.step()
    late = alone.submit(tokens(95, seed=1), BRIEF)
    rounds = 0
    while not late.position:
        alone.step()
        fused.step()
        rounds += 1
    assert rounds == 11  # one in which the cache grows
    assert running.position == 1 + rounds


def test_a_waiting_prompt_that_a_model_fails_on_ends_alone() -> None:
    team = tiny.team()
    bad = 200
    with torch.no_grad():
        team.router.lm.get_input_embeddings().weight[bad] = float("nan")
    engine = Engine(FusionRoute(team), prefill_chunk=10)
    running = engine.submit([10, 11, 12], WRITING)
    engine.step()
    sick = engine.submit([*[token for token in tokens(60, seed=1) if token != bad], bad], BRIEF)
    while not sick.is_finished:
        engine.step()
    assert "model 'router' returned NaN logits" in str(sick.error)
    engine.run([running])
    assert running.finish_reason == "length"


@pytest.mark.parametrize("make", [Safe, AveragingAcross])
def test_members_read_their_prompts_in_parts_too(make) -> None:
    members = [tiny_ensemble.known(name).member for name in ("bytes", "pieces")]
    prompts = ["hello the", "an ending in the world " * 2]
    sent = [members[0].prompt.encode(prompt) for prompt in prompts]
    plain = Engine(make(members), members[0].pieces.tokenizer).generate(sent, WRITING, unrendered=prompts)
    engine = Engine(make(members), members[0].pieces.tokenizer, prefill_chunk=6)
    running = engine.submit(sent[0], WRITING, prompts[0])
    engine.step()
    late, rounds = engine.submit(sent[1], WRITING, prompts[1]), 0
    while not late.position:
        before, read = running.position, [runner.tokens_read for runner in engine.method.runners]
        engine.step()
        rounds += 1
        assert running.position > before
        if not late.position:
            spent = [runner.tokens_read - at for runner, at in zip(engine.method.runners, read, strict=True)]
            assert max(spent) <= 6 + FEW
    assert rounds > 3
    engine.run([running, late])
    assert [running.output_ids, late.output_ids] == [completion.token_ids for completion in plain]


def test_shadows_are_read_whole(team) -> None:
    engine = Engine(Collab(team.experts, rollout=1), prefill_chunk=4)
    engine.submit([10, 11], WRITING)
    engine.step()
    late = engine.submit(tokens(40, seed=1), BRIEF)
    engine.step()
    assert late.position == 1


def test_the_chunk_suits_the_device() -> None:
    assert chunk_for(torch.device("cpu")) == CPU_CHUNK
    assert chunk_for(torch.device("cuda")) == ACCELERATOR_CHUNK
    assert chunk_for(torch.device("cpu"), 3) == 3


@pytest.mark.parametrize("wanted", [0, -1, True, 2.5, "many"])
def test_a_chunk_that_is_no_number_of_tokens_is_refused(team, wanted) -> None:
    with pytest.raises(SettingsError, match="prefill_chunk is a number of tokens, at least 1"):
        Engine(Single(team.experts["math"], "math"), prefill_chunk=wanted)
