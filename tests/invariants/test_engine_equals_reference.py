"""Design, section 10: 1 (engine = reference, ragged, joining, leaving, rolled back) and 2 (a batch = one at a time)."""

import random

import pytest

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.reference import UncachedRunner, reference
from fusionroute.engine.sequence import Completion
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.single import Single

COUNT = 32


def methods(team, make):
    return {
        "fusion_route": lambda: FusionRoute(team, **make),
        "routing_only": lambda: FusionRoute(team, complement=False, **make),
        "single": lambda: Single(team.experts["math"], "math", **make),
    }


def requests(team, method: str) -> list[tuple[list[int], GenerationSettings]]:
    """Mixed lengths and budgets; every third has a stop string that its answer really meets."""
    pairs = []
    for index, prompt in enumerate(tiny.prompts(COUNT, seed=7)):
        budget = GenerationSettings(max_new_tokens=3 + (index * 5) % 14)
        if index % 3 == 0:
            text = expected(team, method, prompt, budget).text
            budget = budget.model_copy(update={"stop": (text[2:4],)}) if len(text) > 4 else budget
        pairs.append((prompt, budget))
    return pairs


def expected(team, method: str, prompt: list[int], settings: GenerationSettings) -> Completion:
    slow = methods(team, {"make_runner": UncachedRunner})[method]()
    return reference(slow, Engine(slow, team.tokenizer).sequence(prompt, settings))


def run_with_traffic(engine: Engine, pairs, seed: int) -> list[Completion]:
    """Requests join a few at a time while others run; each is cut back to a random length once or twice on its way."""
    dice, sequences, cuts = random.Random(seed), [], {}
    while len(sequences) < len(pairs) or not engine.is_idle:
        for prompt, settings in pairs[len(sequences) :][: dice.randint(0, 4)]:
            sequences.append(engine.submit(prompt, settings))
            cuts[sequences[-1]] = dice.randint(1, 2)
        engine.step()
        for sequence in engine.scheduler.running:
            if cuts[sequence] and dice.random() < 0.3:
                engine.rollback(sequence, dice.randint(sequence.prompt_length, len(sequence)))
                cuts[sequence] -= 1
    return [sequence.completion() for sequence in sequences]


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
@pytest.mark.parametrize("method", ["fusion_route", "routing_only"])
def test_engine_equals_reference_under_traffic(family: str, method: str) -> None:
    team = tiny.team(family)
    pairs = requests(team, method)
    engine = Engine(methods(team, {})[method](), team.tokenizer, max_batch=9)
    found = run_with_traffic(engine, pairs, seed=3)
    for (prompt, settings), completion in zip(pairs, found, strict=True):
        wanted = expected(team, method, prompt, settings)
        assert completion.token_ids == wanted.token_ids
        assert (completion.text, completion.finish_reason) == (wanted.text, wanted.finish_reason)
        assert [r.expert for r in completion.trace] == [r.expert for r in wanted.trace]
    assert len({record.expert for completion in found for record in completion.trace}) == 3, (
        "all experts must have written"
    )
    assert {"stop", "length"} <= {completion.finish_reason for completion in found}


@pytest.mark.parametrize("method", ["fusion_route", "single"])
def test_a_ragged_batch_equals_one_at_a_time(method: str) -> None:
    team = tiny.team()
    settings = GenerationSettings(max_new_tokens=12)
    prompts = tiny.prompts(12, seed=1)
    together = Engine(methods(team, {})[method](), team.tokenizer).generate(prompts, settings)
    for prompt, completion in zip(prompts, together, strict=True):
        (alone,) = Engine(methods(team, {})[method](), team.tokenizer).generate([prompt], settings)
        assert (completion.token_ids, completion.text) == (alone.token_ids, alone.text)
        assert [r.expert for r in completion.trace] == [r.expert for r in alone.trace]


def test_sampling_does_not_depend_on_the_neighbours() -> None:
    team = tiny.team()
    options = {"max_new_tokens": 12, "do_sample": True, "temperature": 0.9, "top_p": 0.95, "seed": 5}
    prompts = tiny.prompts(10, seed=2)

    def tokens(batch: list[list[int]], **changed: int) -> list[list[int]]:
        return [completion.token_ids for completion in team.generate(batch, **{**options, **changed})]

    together = tokens(prompts)
    assert [tokens([prompt])[0] for prompt in prompts] == together
    assert tokens(prompts[::-1])[::-1] == together
    assert tokens(prompts, seed=6) != together


def test_a_cancelled_neighbour_changes_nothing() -> None:
    team = tiny.team()
    settings = GenerationSettings(max_new_tokens=15)
    prompts = tiny.prompts(6, seed=3)
    wanted = team.generate(prompts, max_new_tokens=15)
    engine = team.engine()
    sequences = [engine.submit(prompt, settings) for prompt in prompts]
    for _ in range(4):
        engine.step()
    engine.cancel(sequences[0])
    engine.cancel(sequences[3])
    found = engine.run(sequences)
    for index in (1, 2, 4, 5):
        assert found[index].token_ids == wanted[index].token_ids
    assert found[0].finish_reason == "cancelled"
    assert found[0].token_ids == wanted[0].token_ids[:4]


def test_a_foreign_token_after_a_rollback_is_read_by_every_model() -> None:
    """Cutting back and writing something else must not leave the old tokens in any cache."""
    team = tiny.team()
    prompt = tiny.prompts(1, seed=4)[0]
    engine = team.engine()
    sequence = engine.submit(prompt, GenerationSettings(max_new_tokens=20))
    for _ in range(8):
        engine.step()
    engine.rollback(sequence, len(prompt) + 2)
    kept = sequence.output_ids
    foreign = next(token for token in (50, 51) if token != kept[-1])
    sequence.append(sequence.trace[0].__class__(token_id=foreign, expert="math"))
    (found,) = engine.run([sequence])
    (wanted,) = team.generate([[*prompt, *kept, foreign]], max_new_tokens=17)
    assert found.token_ids[3:] == wanted.token_ids
