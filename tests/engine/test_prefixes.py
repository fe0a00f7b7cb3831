"""What models have read before is copied, not read: the same tokens come out, and fewer are read."""

import random

import pytest
import torch

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.cache import SlotCache
from fusionroute.engine.engine import Engine
from fusionroute.engine.prefixes import SHORTEST, Prefixes, Shared, common_length, shared_beginnings
from fusionroute.engine.probe import bytes_per_token
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.methods.averaging import Averaging
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.single import Single

COMMON, OWN, NEW, COUNT = 60, 5, 6, 32
SETTINGS = GenerationSettings(max_new_tokens=NEW, ignore_eos=True)


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(tiny.SPECIAL), tiny.VOCABULARY, (count,), generator=generator).tolist()


def alike(count: int = COUNT) -> list[list[int]]:
    """Prompts that share their first tokens; the next one differs for each."""
    common = tokens(COMMON, seed=0)
    return [[*common, 10 + at, *tokens(OWN - 1, seed=at)] for at in range(count)]


@pytest.fixture(scope="module")
def team():
    return tiny.team()


@pytest.fixture(scope="module")
def wanted(team) -> list[list[int]]:
    found = Engine(FusionRoute(team), prefix_reuse=False).generate(alike(), SETTINGS)
    return [completion.token_ids for completion in found]


def own_tokens(engine: Engine, sequences: int) -> dict[str, int]:
    """Tokens that each model may read besides one common beginning: those that were asked for all sequences."""
    return {runner.name: sequences * (OWN + NEW - 1) for runner in engine.method.runners}


def check_read_once(engine: Engine, sequences: int) -> None:
    router, *experts = engine.method.runners
    assert router.tokens_read == COMMON + sequences * (OWN + NEW - 1)
    assert router.tokens_reused == (sequences - 1) * COMMON
    for expert in experts:
        assert expert.tokens_read <= COMMON + own_tokens(engine, sequences)[expert.name]


def test_what_many_begin_with_is_read_once_when_they_come_together(team, wanted, monkeypatch) -> None:
    monkeypatch.setattr(Runner, "pass_in_tokens", 16.0)  # as of a model of usual size: of a tiny one passes are dear
    engine = Engine(FusionRoute(team))
    assert [completion.token_ids for completion in engine.generate(alike(), SETTINGS)] == wanted
    check_read_once(engine, COUNT)
    assert sum(expert.tokens_reused > 0 for expert in engine.method.runners[1:]) >= 2


def test_what_many_begin_with_is_read_once_when_they_come_one_after_another(team, wanted) -> None:
    engine = Engine(FusionRoute(team), prefill_chunk=200)
    sequences = []
    for prompt in alike():
        sequences.append(engine.submit(prompt, SETTINGS))
        engine.step()
    engine.run(sequences)
    assert [sequence.output_ids for sequence in sequences] == wanted
    check_read_once(engine, COUNT)


def test_what_many_begin_with_is_read_once_also_after_the_first_has_left(team, wanted) -> None:
    engine = Engine(FusionRoute(team))
    for prompt, answer in zip(alike(), wanted, strict=True):
        (found,) = engine.generate([prompt], SETTINGS)
        assert found.token_ids == answer
        assert not any(runner.cache.lengths for runner in engine.method.runners)
    check_read_once(engine, COUNT)


def test_off_reads_everything(team, wanted) -> None:
    engine = Engine(FusionRoute(team), prefix_reuse=False)
    engine.generate(alike(), SETTINGS)
    assert engine.method.runners[0].tokens_read == COUNT * (COMMON + OWN + NEW - 1)
    assert [runner.tokens_reused for runner in engine.method.runners] == [0] * 4


def test_the_next_turn_of_a_chat_reads_what_is_new(team) -> None:
    engine = Engine(Single(team.experts["math"], "math"))
    (runner,) = engine.method.runners
    chat = tokens(COMMON, seed=1)
    for turn in range(3):
        before = runner.tokens_read
        (answer,) = engine.generate([chat], SETTINGS)
        (plain,) = Engine(Single(team.experts["math"], "math"), prefix_reuse=False).generate([chat], SETTINGS)
        assert answer.token_ids == plain.token_ids
        if turn:  # the last token that was written, the new message, and all but the last of the new answer
            assert runner.tokens_read - before == 1 + OWN + NEW - 1
        chat += answer.token_ids + tokens(OWN, seed=2 + turn)
    assert len(runner.prefixes.stored) == 1, "a longer copy takes the place of a shorter one"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_writes_the_same(family: str) -> None:
    team = tiny.team(family)
    prompts = [*alike(5), tokens(COMMON, seed=3), *alike(3)]
    plain = Engine(Averaging(team.experts), prefix_reuse=False).generate(prompts, SETTINGS)
    engine = Engine(Averaging(team.experts))
    for _ in range(2):  # the second time from copies of what has left
        found = engine.generate(prompts, SETTINGS)
        assert [each.token_ids for each in found] == [each.token_ids for each in plain]
    assert all(runner.tokens_reused > 0 for runner in engine.method.runners)


def test_random_traffic_over_shared_prefixes_equals_no_reuse(team) -> None:
    dice = random.Random(4)
    stems = [tokens(length, seed=length) for length in (0, 35, 50, 70)]
    stems += [stems[3][:40] + tokens(30, seed=9)]
    prompts = [dice.choice(stems) + tokens(dice.randint(1, 20), seed=dice.randint(0, 6)) for _ in range(40)]
    plain = Engine(FusionRoute(team), prefix_reuse=False).generate(prompts, SETTINGS)
    engine, sequences, cuts = Engine(FusionRoute(team), max_batch=7, prefill_chunk=24), [], {}
    while len(sequences) < len(prompts) or not engine.is_idle:
        for prompt in prompts[len(sequences) :][: dice.randint(0, 3)]:
            sequences.append(engine.submit(prompt, SETTINGS))
        engine.step()
        for sequence in list(engine.scheduler.running):
            if dice.random() < 0.1 and cuts.setdefault(sequence, 0) < 2:
                engine.rollback(sequence, dice.randint(sequence.prompt_length, len(sequence)))
                cuts[sequence] += 1
    assert [sequence.output_ids for sequence in sequences] == [completion.token_ids for completion in plain]
    assert all(runner.tokens_reused > 0 for runner in engine.method.runners)


def test_logits_that_are_asked_for_are_read_again(team) -> None:
    runner, plain = Runner(team.router, "router"), Runner(team.router, "router")
    runner.reuse_prefixes(True)
    one, other = (Sequence(tokens(COMMON, seed=1), SETTINGS) for _ in range(2))
    runner.read([one])
    before = runner.tokens_read
    found = runner.read([other], last=20)
    assert runner.tokens_read - before == 20
    torch.testing.assert_close(found.logits, plain.read([one], last=20).logits, atol=1e-4, rtol=1e-4)
    assert runner.tokens_reused == COMMON - 20


def test_a_row_that_was_rewritten_behind_our_back_is_known_by_what_was_read(team) -> None:
    """Whoever changes ``token_ids`` without a rollback changes nothing of what the cache holds."""
    runner = Runner(team.router, "router")
    runner.reuse_prefixes(True)
    one = Sequence(tokens(COMMON, seed=1), SETTINGS)
    runner.read([one])
    one.token_ids[50:] = [9] * 10
    other = Sequence(list(one.token_ids), SETTINGS)
    runner.read([other])
    assert runner.tokens_reused == 50


def test_prompts_that_ask_for_their_own_likelihood_get_the_same(team) -> None:
    asking = SETTINGS.model_copy(update={"prompt_logprobs": 1})
    engine = Engine(FusionRoute(team))
    engine.generate(alike(2), SETTINGS)
    found = engine.generate(alike(2), asking)
    plain = Engine(FusionRoute(team), prefix_reuse=False).generate(alike(2), asking)
    for mine, its in zip(found, plain, strict=True):
        assert mine.token_ids == its.token_ids
        for (token, logprob, _), (same, expected, _) in zip(mine.prompt_logprobs, its.prompt_logprobs, strict=True):
            assert (token, logprob) == (same, expected if expected is None else pytest.approx(expected, abs=1e-4))


def test_a_sequence_on_which_a_model_failed_is_no_source() -> None:
    team = tiny.team()
    sick = tokens(COMMON, seed=1)
    bad = sick[20]
    weights = team.experts["math"].get_input_embeddings().weight
    healthy = weights[bad].clone()
    engine = Engine(Single(team.experts["math"], "math"))
    (runner,) = engine.method.runners
    with torch.no_grad():
        weights[bad] = float("nan")
    (failed,) = engine.generate([sick], SETTINGS)
    assert failed.finish_reason == "error"
    assert runner.prefixes.stored == []
    with torch.no_grad():  # the model is well again, as after a fault of the machine
        weights[bad] = healthy
    (found,) = engine.generate([sick], SETTINGS)
    assert (found.finish_reason, runner.tokens_reused) == ("length", 0)


def test_a_nan_that_no_logits_have_shown_yet_is_not_copied() -> None:
    """A prompt that is read in parts says nothing before its end."""
    model = tiny.language_model()
    ids = tokens(COMMON, seed=1)
    runner = Runner(model, "m")
    runner.reuse_prefixes(True)
    first, second = Sequence(ids, SETTINGS), Sequence(ids, SETTINGS)
    with torch.no_grad():
        weights = model.get_input_embeddings().weight
        healthy = weights[ids[3]].clone()
        weights[ids[3]] = float("nan")
        runner.read_ahead([first], [COMMON])
        weights[ids[3]] = healthy
    assert (runner.missing(first), first.error) == (1, None)
    runner.read([second])
    assert (second.error, runner.tokens_reused) == (None, 0)
    runner.release(first)
    assert runner.prefixes.stored == []


def test_copies_and_rectangle_together_stay_within_the_limit(team) -> None:
    per_token = sum(bytes_per_token(model, name) for name, model in team.models.items())
    engine = Engine(FusionRoute(team), cache_limit=400 * per_token)
    router = engine.method.runners[0]
    dice = random.Random(2)
    for seed in range(12):
        engine.generate([tokens(dice.randint(SHORTEST, 90), seed=seed)], SETTINGS)
        for runner in engine.method.runners:
            rows, positions = runner.cache.capacity
            assert rows * positions + runner.prefixes.tokens_stored <= 400
    stored = router.prefixes.tokens_stored
    assert stored > 150
    engine.submit(tokens(20, seed=99), SETTINGS.model_copy(update={"max_new_tokens": 60}))
    while not engine.is_idle:
        if len(engine.scheduler.running) < 4 and router.passes % 3:
            engine.submit(tokens(60, seed=98), SETTINGS)
        engine.step()
        rows, positions = router.cache.capacity
        assert rows * positions + router.prefixes.tokens_stored <= 400
        if router.prefixes.tokens_stored < stored:
            break
    assert router.prefixes.tokens_stored < stored, "the rectangle has grown, so copies had to go"


def test_the_least_lately_used_copy_goes_first() -> None:
    cache = SlotCache(token_limit=130)
    prefixes = Prefixes(cache)
    held = {name: [at + 1] * 40 for at, name in enumerate("abc")}

    def visit(name: str) -> None:
        cache.join(name, 40)
        prefixes.take(name, held[name], 39)
        start = cache.lengths[name]
        cache.plan([name], [40 - start])
        new = torch.zeros(1, 1, 40 - start, 2)
        cache.update(new, new, 0)
        cache.commit([name])
        prefixes.note(name, start, held[name][start:])
        prefixes.leave(name)
        cache.leave(name)

    for name in "ababc":
        visit(name)
    assert [each.ids[0] for each in prefixes.stored] == [2, 3]
    visit("b")
    visit("a")
    assert [each.ids[0] for each in prefixes.stored] == [2, 1]


def test_random_rows_and_copies_stay_within_the_limit() -> None:
    """As allocated, layer by layer, and not only after whole passes."""
    for seed in range(12):
        dice, limit, layers = random.Random(seed), 300, 4
        cache = SlotCache(limit)
        prefixes, ids, count = Prefixes(cache), dict[int, list[int]](), 0
        for _ in range(150):
            wanted = dice.randint(3, 80)
            lengths = [len(each) for each in ids.values()]
            if dice.random() < 0.4 and (len(ids) + 1) * max([*lengths, wanted]) <= limit:
                count += 1
                ids[count] = [1] * wanted if dice.random() < 0.6 else [count] * wanted
                cache.join(count, wanted)
                prefixes.take(count, ids[count], wanted - 1)
            if ids and dice.random() < 0.2:
                left = dice.choice(list(ids))
                prefixes.leave(left)
                cache.leave(left)
                del ids[left]
            reading = [each for each in ids if cache.lengths[each] < len(ids[each])]
            if reading and dice.random() < 0.8:
                row = dice.choice(reading)
                start = cache.lengths[row]
                part = dice.randint(1, len(ids[row]) - start)
                cache.plan([row], [part])
                new = torch.full((1, 1, part, 2), float(ids[row][0]))
                for layer in range(layers):
                    cache.update(new, new, layer)
                cache.commit([row])
                prefixes.note(row, start, ids[row][start : start + part])
            if cache.nbytes:
                assert cache.nbytes <= (limit - prefixes.tokens_stored) * cache.bytes_per_token
            for row, its in ids.items() if cache.nbytes else ():
                for keys in cache.stretch(row, cache.lengths[row]).keys if cache.lengths[row] else []:
                    assert keys.eq(its[0]).all()


def test_what_was_read_before_the_weights_changed_is_forgotten() -> None:
    model, prompts = tiny.language_model(), alike(2)
    engine = Engine(Single(model, "m"))
    engine.generate(prompts, SETTINGS)
    other = tiny.language_model(seed=5)
    model.load_state_dict(other.state_dict())
    engine.forget_prefixes()
    (runner,) = engine.method.runners
    before = runner.tokens_reused
    found = engine.generate(prompts[:1], SETTINGS)
    assert runner.tokens_reused == before
    (wanted,) = Engine(Single(other, "m")).generate(prompts[:1], SETTINGS)
    assert found[0].token_ids == wanted.token_ids


def test_a_long_prompt_makes_the_cache_grow_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Single(tiny.language_model(), "m"), prefill_chunk=10)
    (runner,) = engine.method.runners
    engine.submit([10, 11], SETTINGS.model_copy(update={"max_new_tokens": 60}))
    engine.step()
    grown, moved = list[tuple[int, int]](), SlotCache._moved
    monkeypatch.setattr(SlotCache, "_moved", lambda *each: (grown.append(each[2:]), moved(*each))[1])
    late = engine.submit(tokens(150, seed=1), SETTINGS)
    engine.run([late])
    assert len(grown) == len(set(grown)) * 2 * runner.config.num_hidden_layers
    assert len(set(grown)) == 1


def test_who_reads_what_for_whom() -> None:
    a, b, c = [1] * 100, [2] * 50, [3] * 40
    ids = [a + b + [4], a + c + [5], a + b + [6], [7], a + b + [8] * 60]
    most = [len(each) - 1 for each in ids]
    plan = shared_beginnings(ids, most, [0] * 5, pass_cost=64)
    assert plan == [Shared(0, (2, 4, 1), 100), Shared(0, (2, 4), 150)]
    assert shared_beginnings(ids, most, [0, 0, 0, 0, 150], pass_cost=64)[0] == Shared(4, (0, 2, 1), 100)
    assert shared_beginnings(ids[:2], most[:2], [0] * 2, pass_cost=100) == [], "no more would be saved than it costs"
    assert shared_beginnings(ids, [SHORTEST - 1] * 5, [0] * 5, pass_cost=0) == []


@pytest.mark.parametrize(
    ("one", "other", "most", "length"),
    [
        ([1, 2, 3], [1, 2, 4], 9, 2),
        ([1, 2], [1, 2, 4], 9, 2),
        ([1, 2], [1, 2], 1, 1),
        ([3], [1], 9, 0),
        ([], [1], 9, 0),
    ],
)
def test_common_length(one: list[int], other: list[int], most: int, length: int) -> None:
    assert common_length(one, other, most) == length
