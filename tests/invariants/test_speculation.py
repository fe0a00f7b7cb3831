"""Design, section 10: 4 (speculation on = off, token for token, greedily and sampled, whoever drafts and how far)."""

import random
from functools import cache

import pytest

import tiny
from fusionroute import Team
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.reference import UncachedRunner, reference
from fusionroute.engine.sequence import Completion
from fusionroute.engine.speculation import SpeculationSettings
from fusionroute.methods.fusion_route import FusionRoute

COUNT = 9
FAMILIES = ("llama", "gemma2", "qwen3", "mistral", "olmoe")
DRAFTERS = ("router", "ngram", "model")
LENGTHS = {"router": 3, "ngram": 5, "model": 2}
Asked = list[tuple[list[int], GenerationSettings]]


@cache
def team(family: str) -> Team:
    return tiny.team(family)


def speculating(family: str, drafter: str, *, adaptive: bool = False, **options) -> FusionRoute:
    """The draft model is the router's own language model in the llamas, so that some of what it drafts is right."""
    settings = SpeculationSettings(
        drafter=drafter, model="a twin" if drafter == "model" else None, max_draft=LENGTHS[drafter], adaptive=adaptive
    )
    model = team(family).router.lm if family == "llama" else tiny.language_model(family, 1)
    draft_model = model if settings.model else None
    return FusionRoute(team(family), speculation=settings, draft_model=draft_model, **options)


@cache
def asked(family: str, *, is_sampled: bool, complement: bool = True) -> Asked:
    """Mixed lengths and budgets of prompts that repeat themselves; every third has a stop string that it meets."""
    found = []
    for at, prompt in enumerate(tiny.prompts(COUNT, seed=11, longest=8)):
        options: dict = {"max_new_tokens": 2 + (at * 5) % 17, "logprobs": 2}
        if is_sampled:
            options |= {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "seed": at}
        if at % 4 == 1:
            options |= {"presence_penalty": 0.7, "frequency_penalty": -0.4}
        settings = GenerationSettings(**options)
        text = expected(family, prompt * 2, settings, complement).text
        if at % 3 == 0 and len(text) > 4:
            settings = settings.model_copy(update={"stop": (text[2:4],)})
        found.append((prompt * 2, settings))
    return found


def expected(family: str, prompt: list[int], settings: GenerationSettings, complement: bool = True) -> Completion:
    return referred(family, tuple(prompt), settings, complement)


@cache
def referred(family: str, prompt: tuple[int, ...], settings: GenerationSettings, complement: bool) -> Completion:
    slow = FusionRoute(team(family), complement=complement, make_runner=UncachedRunner)
    return reference(slow, Engine(slow, team(family).tokenizer).sequence(list(prompt), settings))


def with_traffic(engine: Engine, pairs: Asked, seed: int) -> list[Completion]:
    """Requests join a few at a time while others run; each is cut back once or twice on its way."""
    dice, sequences, cuts = random.Random(seed), [], {}
    while len(sequences) < len(pairs) or not engine.is_idle:
        for prompt, settings in pairs[len(sequences) :][: dice.randint(0, 3)]:
            sequences.append(engine.submit(prompt, settings))
            cuts[sequences[-1]] = dice.randint(1, 2)
        engine.step()
        for sequence in engine.scheduler.running:
            assert len(sequence) == sequence.prompt_length + len(sequence.trace), "a draft was left behind"
            for runner in engine.method.runners:
                assert runner.cache.lengths.get(sequence, 0) < len(sequence), "a model kept what was not written"
            if cuts[sequence] and dice.random() < 0.3:
                engine.rollback(sequence, dice.randint(sequence.prompt_length, len(sequence)))
                cuts[sequence] -= 1
    return [sequence.completion() for sequence in sequences]


def check(found: Completion, wanted: Completion) -> None:
    assert found.token_ids == wanted.token_ids
    assert (found.text, found.finish_reason) == (wanted.text, wanted.finish_reason)
    for mine, its in zip(found.trace, wanted.trace, strict=True):
        assert (mine.expert, mine.decided_by) == (its.expert, its.decided_by)
        assert mine.weights == pytest.approx(its.weights, abs=1e-4)
        assert mine.logprob == pytest.approx(its.logprob, abs=1e-3)
        assert [token for token, _ in mine.top_logprobs] == [token for token, _ in its.top_logprobs]


@pytest.mark.parametrize("is_sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_on_is_off_under_traffic(family: str, drafter: str, is_sampled: bool) -> None:
    pairs = asked(family, is_sampled=is_sampled)
    method = speculating(family, drafter)
    found = with_traffic(Engine(method, team(family).tokenizer, max_batch=5), pairs, seed=3)
    for (prompt, settings), completion in zip(pairs, found, strict=True):
        check(completion, expected(family, prompt, settings))
    assert method.drafted, "nobody drafted"
    assert {"stop", "length"} <= {completion.finish_reason for completion in found}


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_on_is_off_without_the_complement(drafter: str) -> None:
    pairs = asked("llama", is_sampled=True, complement=False)
    method = speculating("llama", drafter, complement=False)
    found = with_traffic(Engine(method, team("llama").tokenizer, max_batch=5), pairs, seed=5)
    for (prompt, settings), completion in zip(pairs, found, strict=True):
        check(completion, expected("llama", prompt, settings, complement=False))


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_on_is_off_where_the_length_adapts(drafter: str) -> None:
    """By a clock that runs backwards and forwards: whatever it says, the tokens are the same."""
    dice = random.Random(1)
    pairs = asked("gemma2", is_sampled=False)
    method = speculating("gemma2", drafter, adaptive=True)
    assert method.speculation.pace is not None
    method.speculation.pace.clock = dice.random
    found = with_traffic(Engine(method, team("gemma2").tokenizer, max_batch=5), pairs, seed=7)
    for (prompt, settings), completion in zip(pairs, found, strict=True):
        check(completion, expected("gemma2", prompt, settings))


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_reference_too_may_draft(drafter: str) -> None:
    for prompt, settings in asked("qwen3", is_sampled=True)[:4]:
        slow = speculating("qwen3", drafter, make_runner=UncachedRunner)
        found = reference(slow, Engine(slow, team("qwen3").tokenizer).sequence(prompt, settings))
        check(found, expected("qwen3", prompt, settings))


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    pairs = asked("llama", is_sampled=True)
    engine = Engine(speculating("llama", "router"), team("llama").tokenizer)
    together = engine.run([engine.submit(*pair) for pair in pairs])
    for pair, completion in zip(pairs, together, strict=True):
        alone = Engine(speculating("llama", "ngram"), team("llama").tokenizer)
        assert alone.run([alone.submit(*pair)])[0].token_ids == completion.token_ids
