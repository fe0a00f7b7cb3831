"""Log-probabilities of the prompt: against plain forwards, read once, and nobody else notices."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine import prompt_scoring
from fusionroute.engine.engine import Engine
from fusionroute.engine.method import Method
from fusionroute.engine.reference import UncachedRunner
from fusionroute.engine.sequence import PromptLogprob, Sequence
from fusionroute.methods.averaging import Averaging
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.single import Single
from fusionroute.team import Team

NEW, TOP = 6, 3
ASKING = GenerationSettings(max_new_tokens=NEW, prompt_logprobs=TOP, ignore_eos=True)
PLAIN = GenerationSettings(max_new_tokens=NEW, ignore_eos=True)
BAD_TOKEN = 200
METHODS: dict[str, Callable[..., Method]] = {
    "fusion_route": FusionRoute,
    "routing_only": lambda team, **make: FusionRoute(team, complement=False, **make),
    "averaging": lambda team, **make: Averaging(team.experts, [3, 2, 1], **make),
}


@cache
def one_team() -> Team:
    return tiny.team()


@pytest.fixture(scope="module")
def team() -> Team:
    return one_team()


def ragged() -> list[list[int]]:
    long = tiny.prompts(1, seed=82, longest=90)[0] * 2
    return [[30], [31, 32], *tiny.prompts(4, seed=81), long, long[:40], long[-40:]]


@cache
def uncached(name: str) -> list[list[torch.Tensor]]:
    """What the method says after each beginning of each prompt, read from the first token on every time."""
    slow = METHODS[name](one_team(), make_runner=UncachedRunner)
    begun = [[Sequence(prompt[:length], PLAIN) for length in range(1, len(prompt))] for prompt in ragged()]
    return [[slow.log_probabilities([each])[0, 0] for each in beginnings] for beginnings in begun]


def check(found: list[PromptLogprob] | None, prompt: list[int], wanted: list[torch.Tensor]) -> None:
    """``wanted``: log-probabilities after each beginning of the prompt, ``[vocabulary]``."""
    assert found is not None
    assert [token for token, _, _ in found] == prompt
    assert found[0] == (prompt[0], None, ())
    for (token, logprob, top), said in zip(found[1:], wanted, strict=True):
        assert logprob == pytest.approx(said[token].item(), abs=1e-4)
        assert [other for other, _ in top] == said.topk(TOP).indices.tolist()
        assert [value for _, value in top] == pytest.approx(said.topk(TOP).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_of_one_model_they_are_those_of_a_plain_forward(family: str) -> None:
    model = tiny.language_model(family)
    prompts = ragged()
    answers = Engine(Single(model, "math")).generate(prompts, ASKING)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            said = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        check(answer.prompt_logprobs, prompt, list(said[:-1]))
    plain = Engine(Single(model, "math")).generate(prompts, PLAIN)
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in plain]
    assert {answer.prompt_logprobs for answer in plain} == {None}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("chunk", [2**26, 40 * tiny.VOCABULARY, tiny.VOCABULARY])
def test_of_several_models_they_are_those_of_the_uncached_method(
    team: Team, name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_scoring, "MAX_LOGITS", chunk)
    prompts = ragged()
    method = METHODS[name](team)
    sizes: list[int] = []
    say = method.log_probabilities

    def spied(sequences: list[Sequence], last: int = 1) -> torch.Tensor:
        said = say(sequences, last)
        sizes.append(said.numel() // len(sequences) if chunk == tiny.VOCABULARY else said.numel())
        return said

    monkeypatch.setattr(method, "log_probabilities", spied)
    answers = Engine(method).generate(prompts, ASKING)
    assert max(sizes) <= chunk
    for prompt, answer, wanted in zip(prompts, answers, uncached(name), strict=True):
        check(answer.prompt_logprobs, prompt, wanted)


@pytest.mark.parametrize("chunk", [2**26, 7 * tiny.VOCABULARY])
def test_a_prompt_is_read_once(team: Team, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_scoring, "MAX_LOGITS", chunk)
    prompts = ragged()
    engine = team.engine()
    engine.generate(prompts, ASKING)
    router, *experts = engine.method.runners
    whole = sum(len(prompt) + NEW - 1 for prompt in prompts)  # the last token written is never read
    assert router.tokens_read == whole
    assert all(0 < expert.tokens_read <= whole for expert in experts)


def test_whoever_joins_disturbs_nobody(team: Team) -> None:
    prompts = ragged()
    wanted = [each.token_ids for each in team.generate(prompts, max_new_tokens=NEW, ignore_eos=True)]
    engine = team.engine(max_batch=5)
    sequences = [engine.submit(prompt, PLAIN) for prompt in prompts]
    engine.step()
    engine.step()
    joined = [engine.submit(prompt, ASKING) for prompt in prompts]
    engine.run([*sequences, *joined])
    assert [each.output_ids for each in sequences] == wanted
    assert [each.output_ids for each in joined] == wanted
    for prompt, late, alone in zip(prompts, joined, team.engine().generate(prompts, ASKING), strict=True):
        assert [token for token, _, _ in late.prompt_logprobs or ()] == prompt
        for (_, mine, _), (_, its, _) in zip(late.prompt_logprobs or (), alone.prompt_logprobs or (), strict=True):
            assert mine == (its if its is None else pytest.approx(its, abs=1e-4))


def test_they_are_there_before_the_first_token_and_survive_a_rollback(team: Team) -> None:
    engine = team.engine()
    sequence = engine.submit([10, 11, 12], ASKING)
    assert sequence.prompt_logprobs is None
    engine.step()
    first, known = sequence.output_ids, sequence.prompt_logprobs
    assert len(known or ()) == 3
    engine.step()
    engine.rollback(sequence, 3)
    engine.step()
    assert sequence.output_ids == first
    assert sequence.prompt_logprobs is known


def test_a_prompt_that_fills_all_but_one_place_of_the_context(team: Team) -> None:
    (answer,) = team.engine().generate([[10] * (tiny.CONTEXT - 1)], ASKING)
    assert (len(answer.token_ids), answer.finish_reason) == (1, "length")
    assert len(answer.prompt_logprobs or ()) == tiny.CONTEXT - 1


@pytest.mark.parametrize("broken", ["router", "code"])
@pytest.mark.parametrize("chunk", [2**26, 8 * tiny.VOCABULARY])
def test_a_model_that_fails_on_a_prompt_ends_that_sequence_alone(
    broken: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_scoring, "MAX_LOGITS", chunk)
    team = tiny.team()
    prompts = [[token for token in prompt if token != BAD_TOKEN] or [9] for prompt in tiny.prompts(5, seed=83)]
    model = team.router.lm if broken == "router" else team.experts[broken]
    with torch.no_grad():  # whoever reads this token says NaN from there on
        model.get_input_embeddings().weight[BAD_TOKEN] = float("nan")
        team.router.route_head.weight.zero_()
        team.router.route_head.weight[1] = 1e-3 * torch.randn(32)
    wanted = team.engine().generate(prompts, ASKING)
    sick = [[*prompt, BAD_TOKEN, *prompt] for prompt in prompts[:2]]
    engine = team.engine()
    running = [engine.submit(prompt, PLAIN) for prompt in prompts]
    engine.step()
    failing = [engine.submit(prompt, ASKING) for prompt in sick]
    healthy = [engine.submit(prompt, ASKING) for prompt in prompts]
    engine.run([*running, *failing, *healthy])
    for sequence, prompt in zip(failing, sick, strict=True):
        assert f"model '{broken}' returned NaN logits" in str(sequence.error)
        assert (sequence.token_ids, sequence.prompt_logprobs) == (prompt, None)
    assert [each.output_ids for each in running] == [each.token_ids for each in wanted]
    assert [each.output_ids for each in healthy] == [each.token_ids for each in wanted]
    assert not any(runner.cache.lengths for runner in engine.method.runners)


def test_long_prompts_are_scored_in_parts_while_others_write(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_scoring, "STEP", 20)
    prompts = ragged()
    longest = max(prompts, key=len)
    alone = team.engine().generate([longest, prompts[2]], ASKING)
    engine = team.engine()
    router = engine.method.runners[0]
    first, second = engine.submit(longest, ASKING), engine.submit(longest, ASKING)
    engine.step()
    running, short = engine.submit(prompts[2], PLAIN), engine.submit(prompts[2], ASKING)
    while not running.is_finished:
        before, written = router.tokens_read, running.position
        engine.step()
        assert running.position == written + 1
        assert router.tokens_read - before <= 20 + len(prompts[2]) + 3
        assert first.token_ids == second.token_ids == longest, "between two steps a prompt is whole"
    assert short.position, "it waits for no long prompt's end"
    assert first.position == 0
    engine.run([first, second, short])
    for sequence, expected in zip((first, second, short), (alone[0], alone[0], alone[1]), strict=True):
        assert sequence.output_ids == expected.token_ids
        for (token, mine, _), (other, its, _) in zip(
            sequence.prompt_logprobs or (), expected.prompt_logprobs or (), strict=True
        ):
            assert (token, mine) == (other, its if its is None else pytest.approx(its, abs=1e-4))
    assert engine.is_idle


def test_who_is_cancelled_while_being_scored_frees_its_place(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_scoring, "STEP", 20)
    engine = team.engine(max_batch=1)
    leaves, stays = engine.submit(max(ragged(), key=len), ASKING), engine.submit([10, 11, 12], ASKING)
    engine.step()
    engine.cancel(leaves)
    assert leaves not in engine._scoring
    assert not any(runner.cache.lengths for runner in engine.method.runners)
    engine.step()
    assert (leaves.finish_reason, leaves.prompt_logprobs, stays.position) == ("cancelled", None, 1)


def test_a_method_that_raises_ends_those_that_were_scored(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [each.token_ids for each in team.generate([[10, 11, 12]], max_new_tokens=NEW, ignore_eos=True)]
    engine = team.engine()
    running = engine.submit([10, 11, 12], PLAIN)
    engine.step()
    scored = engine.submit([10, 11, 12, 13], ASKING)

    def broken(sequences: list[Sequence], last: int = 1) -> torch.Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.method, "log_probabilities", broken)
        assert engine.step() == [scored]
    assert (scored.token_ids, scored.prompt_logprobs, scored.finish_reason) == ([10, 11, 12, 13], None, "error")
    assert scored.error == "the prompt could not be scored: RuntimeError"
    engine.run([running])
    assert [running.output_ids] == wanted
    again = engine.submit([10, 11, 12, 13], ASKING)
    engine.run([again])
    assert len(again.prompt_logprobs or ()) == 4
    assert engine.is_idle
