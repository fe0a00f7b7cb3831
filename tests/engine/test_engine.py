import random

import pytest
import torch

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.memory import parse_bytes
from fusionroute.engine.probe import bytes_per_token
from fusionroute.engine.runner import split_by_length, split_by_width
from fusionroute.errors import PromptError, RequestTooLargeError, SettingsError
from fusionroute.methods.single import Single

BAD_TOKEN = 200


@pytest.fixture(scope="module")
def team():
    return tiny.team()


def cache_bytes(team, tokens: int) -> int:
    return tokens * sum(bytes_per_token(model, name) for name, model in team.models.items())


def test_more_requests_than_fit_wait_and_memory_stays_within_the_limit(team) -> None:
    limit = cache_bytes(team, 64)
    engine = team.engine(cache_limit=limit)
    settings = GenerationSettings(max_new_tokens=10, ignore_eos=True)
    sequences = [engine.submit(prompt, settings) for prompt in tiny.prompts(9, seed=1, longest=12)]
    most = 0
    while not engine.is_idle:
        engine.step()
        most = max(most, len(engine.scheduler.running))
        assert sum(runner.cache.nbytes for runner in engine.method.runners) <= limit
    assert 1 < most < 9
    assert [s.completion().token_ids for s in sequences] == [
        c.token_ids for c in team.generate(tiny.prompts(9, seed=1, longest=12), max_new_tokens=10, ignore_eos=True)
    ]


def test_memory_grows_with_use_and_is_freed(team) -> None:
    engine = team.engine()
    sequence = engine.submit(tiny.prompts(1, seed=2)[0], GenerationSettings(max_new_tokens=100, ignore_eos=True))
    engine.step()
    early = sum(runner.cache.nbytes for runner in engine.method.runners)
    engine.run([sequence])
    assert 0 < early < sum(runner.cache.nbytes for runner in engine.method.runners)
    assert not any(runner.cache.lengths for runner in engine.method.runners)


def test_a_request_that_can_never_fit_is_refused_at_once(team) -> None:
    engine = team.engine(cache_limit=cache_bytes(team, 20))
    with pytest.raises(RequestTooLargeError, match=r"need 25 cached tokens but the limit is 20; .*cache_limit"):
        engine.submit([10] * 5, GenerationSettings(max_new_tokens=20))
    engine.submit([10] * 5, GenerationSettings(max_new_tokens=15))
    with pytest.raises(RequestTooLargeError):
        team.generate([[10], [10] * 5], max_new_tokens=20, cache_limit=cache_bytes(team, 20))


def test_a_prompt_that_fills_the_smallest_context_is_refused(team) -> None:
    with pytest.raises(
        PromptError, match=f"{tiny.CONTEXT} tokens but the smallest context of the models is {tiny.CONTEXT}"
    ):
        team.generate([[10] * tiny.CONTEXT])
    (completion,) = team.generate([[10] * (tiny.CONTEXT - 2)], max_new_tokens=9, ignore_eos=True)
    assert (len(completion.token_ids), completion.finish_reason) == (2, "length")


@pytest.mark.parametrize("broken", ["router", "code"])
def test_nan_logits_stop_that_sequence_name_the_model_and_spare_the_others(broken: str) -> None:
    team = tiny.team()
    prompts = tiny.prompts(6, seed=5)
    prompts = [[token for token in prompt if token != BAD_TOKEN] or [9] for prompt in prompts]
    model = team.router.lm if broken == "router" else team.experts[broken]
    with torch.no_grad():  # whoever reads this token says NaN from there on
        model.get_input_embeddings().weight[BAD_TOKEN] = float("nan")
        team.router.route_head.weight.zero_()
        team.router.route_head.weight[1] = 1e-3 * torch.randn(32)
    wanted = team.generate(prompts, max_new_tokens=10)
    sick = [[*prompt, BAD_TOKEN] for prompt in prompts[:3]]
    found = team.generate([*sick, *prompts], max_new_tokens=10, max_batch=4)
    for completion, healthy in zip(found[3:], wanted, strict=True):
        assert completion.token_ids == healthy.token_ids
    failed = [completion for completion in found[:3] if completion.finish_reason == "error"]
    assert failed
    for completion in failed:
        assert f"model '{broken}' returned NaN logits" in str(completion.error)


def test_an_expert_reads_a_token_at_most_once_and_the_router_exactly_once(team) -> None:
    engine = team.engine()
    prompt = tiny.prompts(1, seed=6, longest=20)[0]
    (completion,) = engine.generate([prompt], GenerationSettings(max_new_tokens=30, ignore_eos=True))
    router, *experts = engine.method.runners
    read = len(prompt) + len(completion.token_ids) - 1  # nobody needs to read the last token
    assert router.tokens_read == read
    asked = {record.expert for record in completion.trace}
    assert len(asked) > 1
    for expert in experts:
        assert expert.tokens_read <= read
        assert (expert.tokens_read > 0) == (expert.name in asked)


def test_a_model_asked_for_several_positions_gives_those_of_a_plain_pass(team) -> None:
    engine = team.engine()
    sequences = [engine.sequence(prompt, GenerationSettings()) for prompt in ([5, 6, 7, 8, 9], [9, 8, 7])]
    runner = engine.method.runners[0]
    for last in (1, 3, 2):  # asked again for what it has read: it reads again
        found = runner.read(sequences, last=last)
        for at, sequence in enumerate(sequences):
            plain = team.router(torch.tensor([sequence.token_ids]))
            torch.testing.assert_close(found.logits[at], plain.logits[0, -last:], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found.route_logits[at], plain.route_logits[0, -last:], atol=1e-4, rtol=1e-4)


def test_long_prompts_are_read_in_chunks(team, monkeypatch) -> None:
    prompts = [[10 + at for at in range(50)], [7, 8], [9] * 30]
    wanted = team.generate(prompts, max_new_tokens=6)
    monkeypatch.setattr("fusionroute.engine.runner.PREFILL_CHUNK", 8)
    found = team.generate(prompts, max_new_tokens=6)
    assert [c.token_ids for c in found] == [c.token_ids for c in wanted]


def test_log_probabilities_are_those_of_the_fused_distribution(team) -> None:
    prompt = tiny.prompts(1, seed=8)[0]
    (completion,) = team.generate([prompt], max_new_tokens=5, logprobs=4)
    ids = list(prompt)
    for record in completion.trace:
        with torch.no_grad():
            parts = [m(torch.tensor([ids])).logits[0, -1] for m in (team.router, team.experts[record.expert])]
        expected = (parts[0].log_softmax(-1) + parts[1].log_softmax(-1)).log_softmax(-1)
        values, tokens = expected.topk(4)
        assert record.logprob == pytest.approx(expected[record.token_id].item(), abs=1e-4)
        assert [token for token, _ in record.top_logprobs] == tokens.tolist()
        assert [value for _, value in record.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)
        ids.append(record.token_id)
    assert team.generate([prompt], max_new_tokens=5)[0].trace[0].logprob is None


def test_temperature_zero_is_greedy_and_high_temperature_is_not(team) -> None:
    prompts = tiny.prompts(3, seed=9)
    greedy = [c.token_ids for c in team.generate(prompts, max_new_tokens=8)]
    assert [c.token_ids for c in team.generate(prompts, max_new_tokens=8, do_sample=True, temperature=0)] == greedy
    assert [c.token_ids for c in team.generate(prompts, max_new_tokens=8, do_sample=True, temperature=5.0)] != greedy
    assert [c.token_ids for c in team.generate(prompts, max_new_tokens=8, do_sample=True, top_k=1)] == greedy


def test_unseeded_sampling_varies_and_differs_between_equal_prompts(team) -> None:
    random.seed(0)
    one, two = team.generate([[9, 8], [9, 8]], max_new_tokens=10, do_sample=True, temperature=5.0)
    assert one.token_ids != two.token_ids


def test_models_of_a_method_run_alone_too(team) -> None:
    engine = Engine(Single(team.router, "router"), team.tokenizer)
    (completion,) = engine.generate([[9, 8, 7]], GenerationSettings(max_new_tokens=4))
    assert {record.expert for record in completion.trace} == {"router"}
    assert completion.trace[0].weights == ()


def test_the_trace_says_who_decided(team) -> None:
    labels = set()
    for prompt in tiny.prompts(8, seed=10):
        ids = list(prompt)
        for record in team.generate([prompt], max_new_tokens=10, do_sample=True, temperature=3.0, seed=1)[0].trace:
            with torch.no_grad():
                router = int(team.router(torch.tensor([ids])).logits[0, -1].argmax())
                expert = int(team.experts[record.expert](torch.tensor([ids])).logits[0, -1].argmax())
            wanted_by = {
                (True, True): "both",
                (True, False): "expert",
                (False, True): "router",
                (False, False): "neither",
            }
            assert record.decided_by == wanted_by[record.token_id == expert, record.token_id == router]
            labels.add(record.decided_by)
            ids.append(record.token_id)
    assert {"expert", "router", "neither"} <= labels


@pytest.mark.parametrize(
    ("given", "expected"), [(1024, 1024), ("1024", 1024), ("2KiB", 2048), ("1.5g", 3 * 2**29), ("8 GiB", 2**33)]
)
def test_cache_limits_in_bytes(given, expected) -> None:
    assert parse_bytes(given) == expected


@pytest.mark.parametrize("given", [0, -5, "much", "5 apples", ".", ""])
def test_a_wrong_cache_limit_is_refused(given, team) -> None:
    with pytest.raises(SettingsError, match="cache_limit is a number of bytes"):
        team.generate(["x"], cache_limit=given)


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ([1, 1, 1], [[0, 1, 2]]),
        ([5, 1, 2], [[1, 2, 0]]),  # a little padding is cheaper than a second pass
        ([1] * 63 + [35], [list(range(63)), [63]]),
        ([40] + [1] * 40 + [400], [list(range(1, 41)), [0], [41]]),
        ([7], [[0]]),
    ],
)
def test_rows_that_miss_much_more_are_read_apart(counts: list[int], groups: list[list[int]]) -> None:
    assert split_by_width(counts, 64) == groups


def test_reading_apart_changes_no_token(team, monkeypatch) -> None:
    prompts = tiny.prompts(12, seed=20)
    wanted = [c.token_ids for c in team.generate(prompts, max_new_tokens=8)]
    for cost in (0, 10**9):
        monkeypatch.setattr("fusionroute.engine.runner.Runner.pass_in_tokens", cost)
        assert [c.token_ids for c in team.generate(prompts, max_new_tokens=8, max_batch=5)] == wanted


@pytest.mark.parametrize(
    ("lengths", "cost", "groups"),
    [
        ([10, 4000, 12, 9], 5000, [[3, 0, 2], [1]]),
        ([10, 4000, 12, 9], 12000, [[0, 1, 2, 3]]),  # another pass would cost more than the padding
        ([7], 0, [[0]]),
    ],
)
def test_one_long_row_does_not_make_short_ones_attend_as_far(lengths, cost, groups) -> None:
    found = split_by_length(list(range(len(lengths))), lengths, cost)
    assert [sorted(group) for group in found] == [sorted(group) for group in groups]


def test_reading_long_rows_apart_changes_no_token(team, monkeypatch) -> None:
    prompts = [[10 + at] * (90 if at in (1, 4) else 3 + at) for at in range(6)]
    wanted, passes = [], []
    for cost in (10**9, 0):
        monkeypatch.setattr("fusionroute.engine.runner.Runner.pass_in_positions", cost)
        engine = team.engine()
        found = engine.generate(prompts, GenerationSettings(max_new_tokens=8, ignore_eos=True))
        wanted.append([completion.token_ids for completion in found])
        passes.append(engine.method.runners[0].passes)
    assert wanted[0] == wanted[1]
    assert passes[0] == 1 + 7, "all together: of a tiny model, padding is cheaper than another pass"
    assert passes[1] > passes[0] + 7, "each length apart, in every round"
