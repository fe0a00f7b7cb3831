import pytest

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.rollout import extend, pass_on_failures, realign, release, shadow_of, unfinished
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence, TraceRecord
from fusionroute.methods.single import Single


@pytest.fixture(scope="module")
def model():
    return tiny.language_model()


def sequences(model, prompts: list[list[int]], **settings) -> list[Sequence]:
    engine = Engine(Single(model, "math"), tiny.tokenizer())
    return [engine.sequence(prompt, GenerationSettings(**settings)) for prompt in prompts]


def test_a_continuation_is_what_the_model_writes_alone(model) -> None:
    prompts = tiny.prompts(9, seed=91)
    wanted = Engine(Single(model, "math"), tiny.tokenizer()).generate(
        prompts, GenerationSettings(max_new_tokens=12, logprobs=2)
    )
    parents = sequences(model, prompts, max_new_tokens=12, logprobs=2)
    runner = Runner(model, "math")
    shadows = [shadow_of(parent) for parent in parents]
    extend(runner, shadows, 3)
    assert [s.output_ids for s in shadows] == [c.token_ids[:3] for c in wanted]
    extend(runner, shadows)
    assert [s.output_ids for s in shadows] == [c.token_ids for c in wanted]
    assert [s.trace for s in shadows] == [c.trace for c in wanted]
    assert [s.finish_reason for s in shadows] == [c.finish_reason for c in wanted]
    assert all(parent.output_ids == [] and not parent.is_finished for parent in parents)
    release(shadows, [runner])
    assert not runner.cache.lengths


def test_a_shadow_ends_by_the_same_rules(model) -> None:
    prompt = tiny.prompts(1, seed=92)[0]
    (free,) = Engine(Single(model, "math"), tiny.tokenizer()).generate([prompt], GenerationSettings(max_new_tokens=12))
    (parent,) = sequences(model, [prompt], max_new_tokens=12, stop=free.text[3:5])
    shadow = shadow_of(parent)
    extend(Runner(model, "math"), [shadow])
    assert (shadow.finish_reason, shadow.text) == ("stop", free.text[: free.text.index(free.text[3:5])])
    assert len(shadow.output_ids) < 12
    (parent,) = sequences(model, [[9] * (tiny.CONTEXT - 2)], max_new_tokens=12, ignore_eos=True)
    shadow = shadow_of(parent)
    extend(Runner(model, "math"), [shadow], 5)
    assert (len(shadow), shadow.max_length) == (tiny.CONTEXT, tiny.CONTEXT)


def test_what_both_begin_with_stays_read(model) -> None:
    (parent,) = sequences(model, [[9] * 10], max_new_tokens=20, ignore_eos=True)
    runner, shadow = Runner(model, "math"), shadow_of(parent)
    extend(runner, [shadow], 6)
    assert runner.cache.lengths[shadow] == 15  # nobody has read the last
    written = shadow.trace[:2]
    for record in [*written, TraceRecord(token_id=(shadow.output_ids[2] + 1) % 200 + 5, expert="code")]:
        parent.append(record)
    realign(shadow, parent, [runner])
    assert shadow.token_ids == parent.token_ids
    assert shadow.trace == parent.trace
    assert runner.cache.lengths[shadow] == 12
    before = runner.tokens_read
    extend(runner, [shadow], 1)
    assert runner.tokens_read == before + 1
    fresh = shadow_of(parent)
    extend(Runner(model, "math"), [fresh], 1)
    assert fresh.token_ids == shadow.token_ids
    parent.rollback(10)
    realign(shadow, parent, [runner])
    assert (shadow.output_ids, runner.cache.lengths[shadow]) == ([], 10)


def test_a_finished_shadow_starts_anew(model) -> None:
    (parent,) = sequences(model, [[9, 8]], max_new_tokens=2, ignore_eos=True)
    shadow = shadow_of(parent)
    extend(Runner(model, "math"), [shadow])
    shadow.error = "model 'x' failed"
    assert unfinished([shadow, parent]) == [parent]
    pass_on_failures([shadow], [parent])
    assert (parent.finish_reason, parent.error) == ("error", "model 'x' failed")
    realign(shadow, parent, [])
    assert (shadow.finish_reason, shadow.error, shadow.output_ids) == (None, None, [])
