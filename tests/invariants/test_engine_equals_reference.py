"""Design, section 10: 1 (engine = reference, ragged, joining, leaving, rolled back) and 2 (a batch = one at a time)."""

import random
from functools import cache

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.reference import UncachedRunner, reference
from fusionroute.engine.scorer import RewardScorer
from fusionroute.engine.sequence import Completion
from fusionroute.methods.averaging import Averaging
from fusionroute.methods.collab import Collab
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.sequence_selection import SequenceSelection
from fusionroute.methods.single import Single
from fusionroute.models.reward import RewardModel

COUNT = 32
LOOKING_AHEAD = ("collab", "collab_by_reward")
FEW, SHORT = 10, 8  # for those the reference reads every continuation from its beginning at every token


def methods(team, make):
    return {
        "fusion_route": lambda: FusionRoute(team, **make),
        "routing_only": lambda: FusionRoute(team, complement=False, **make),
        "single": lambda: Single(team.experts["math"], "math", **make),
        "averaging": lambda: Averaging(team.experts, [2, 3, 2], **make),
        "averaging_logs": lambda: Averaging(team.experts, space="log_probabilities", **make),
        "sequence_selection": lambda: SequenceSelection(team.experts, **make),
        "collab": lambda: Collab(team.experts, candidates=2, rollout=2, **make),
        "collab_by_reward": lambda: Collab(team.experts, RewardScorer(reward(), team.tokenizer), rollout=3, **make),
    }


@cache
def reward() -> RewardModel:
    """Built in code and never trained: a strict and lively judge."""
    torch.manual_seed(9)
    return RewardModel(LlamaForSequenceClassification(LlamaConfig(**tiny.COMMON, num_labels=1)), tiny.tokenizer())


def requests(team, method: str) -> list[tuple[list[int], GenerationSettings]]:
    """Mixed lengths and budgets; every third has a stop string that its answer really meets."""
    pairs = []
    count, longest = (FEW, SHORT) if method in LOOKING_AHEAD else (COUNT, 16)
    for index, prompt in enumerate(tiny.prompts(count, seed=7)):
        budget = GenerationSettings(max_new_tokens=3 + (index * 5) % (longest - 2))
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


ALL_FAMILIES = [(family, method) for family in tiny.FAMILIES for method in ("fusion_route", "routing_only")]
OTHERS = [
    ("llama", "averaging"),
    ("qwen3", "averaging_logs"),
    ("mistral", "sequence_selection"),
    ("gemma2", "collab"),
    ("llama", "collab_by_reward"),
]


@pytest.mark.parametrize(("family", "method"), [*ALL_FAMILIES, *OTHERS])
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
    authors = {record.expert for completion in found for record in completion.trace}
    assert len(authors) >= (2 if method in LOOKING_AHEAD else 3), "all experts must have written, of few answers most"
    assert {"stop", "length"} <= {completion.finish_reason for completion in found}


@pytest.mark.parametrize("method", ["fusion_route", "routing_only", "single", "averaging"])
def test_engine_equals_reference_under_penalties(method: str) -> None:
    team = tiny.team()
    pairs = []
    for at, prompt in enumerate(tiny.prompts(9, seed=8)):
        options: dict = {"presence_penalty": at % 3 - 1.0, "frequency_penalty": at % 4 / 2 - 0.5, "candidates": 2}
        if at % 2:
            options |= {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "seed": at}
        pairs.append((prompt, GenerationSettings(max_new_tokens=8 + at, **options)))
    found = run_with_traffic(Engine(methods(team, {})[method](), team.tokenizer, max_batch=5), pairs, seed=5)
    changed = 0
    for (prompt, settings), completion in zip(pairs, found, strict=True):
        wanted = expected(team, method, prompt, settings)
        assert completion.token_ids == wanted.token_ids
        for mine, its in zip(completion.trace, wanted.trace, strict=True):
            assert [name for name, _ in mine.candidates] == [name for name, _ in its.candidates]
            for (_, ours), (_, theirs) in zip(mine.candidates, its.candidates, strict=True):
                assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], abs=1e-4)
        plain = settings.model_copy(update={"presence_penalty": 0.0, "frequency_penalty": 0.0})
        changed += expected(team, method, prompt, plain).token_ids != wanted.token_ids
    assert changed > 2, "penalties must have changed something"


@pytest.mark.parametrize("method", ["fusion_route", "single", "averaging", "sequence_selection", "collab"])
def test_a_ragged_batch_equals_one_at_a_time(method: str) -> None:
    team = tiny.team()
    settings = GenerationSettings(max_new_tokens=SHORT if method in LOOKING_AHEAD else 12)
    prompts = tiny.prompts(FEW // 2 if method in LOOKING_AHEAD else 12, seed=1)
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
