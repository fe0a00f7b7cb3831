"""`Team.generate` and `Team.stream`: the library's front door."""

import pytest
import torch

import tiny
from fusionroute import FusionRouteError, Team
from fusionroute.errors import PromptError, SettingsError


@pytest.fixture(scope="module")
def team() -> Team:
    return tiny.team(prompt="chat_template")


def test_strings_token_ids_and_messages_are_prompts(team: Team) -> None:
    ids = team.tokenizer("<user>hi<assistant>").input_ids
    found = team.generate(["hi", ids, [{"role": "user", "content": "hi"}]], max_new_tokens=6)
    assert len({tuple(completion.token_ids) for completion in found}) == 1


def test_a_completion_holds_text_ids_reason_and_trace(team: Team) -> None:
    (completion,) = team.generate(["hi"], max_new_tokens=6, ignore_eos=True)
    assert completion.text == team.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    assert [record.token_id for record in completion.trace] == completion.token_ids
    assert completion.finish_reason == "length"
    for record in completion.trace:
        assert record.expert == team.expert_names[max(range(3), key=record.weights.__getitem__)]
        assert sum(record.weights) == pytest.approx(1)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 3, "temperature": 2.0}, {"stop": ["a", "\n"]}])
def test_a_joined_stream_is_the_completion(team: Team, options: dict) -> None:
    for prompt in ("hi", "été", "x" * 20):
        (wanted,) = team.generate([prompt], max_new_tokens=20, **options)
        tokens = list(team.stream(prompt, max_new_tokens=20, **options))
        assert "".join(token.text for token in tokens) == wanted.text
        assert [token.token_id for token in tokens] == wanted.token_ids
        assert [token.expert for token in tokens] == [record.expert for record in wanted.trace]
        assert [token.finish_reason for token in tokens] == [None] * (len(tokens) - 1) + [wanted.finish_reason]


def test_leaving_a_stream_early_is_fine(team: Team) -> None:
    stream = team.stream("hi", max_new_tokens=20, ignore_eos=True)
    next(stream)
    stream.close()
    assert len(list(team.stream("hi", max_new_tokens=3, ignore_eos=True))) == 3


def test_no_prompts_no_completions(team: Team) -> None:
    assert team.generate([]) == []


def test_a_stream_that_breaks_says_which_model(team: Team) -> None:
    broken = tiny.team()
    with torch.no_grad():
        broken.router.lm.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(FusionRouteError, match="model 'router' returned NaN"):
        list(broken.stream("hi", max_new_tokens=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: Input should be greater than 0 .got 0."),
        ({"max_new_tokens": -3}, "got -3"),
        ({"temperature": -1.0, "do_sample": True}, "temperature: .* greater than or equal to 0 .got -1.0."),
        ({"temperature": float("nan"), "do_sample": True}, "temperature: .*finite.*nan"),
        ({"top_p": 0.0, "do_sample": True}, "top_p: .* greater than 0 .got 0.0."),
        ({"top_p": 1.5, "do_sample": True}, "top_p: .* less than or equal to 1"),
        ({"top_k": 0, "do_sample": True}, "top_k"),
        ({"max_tokens": 5}, "unknown option 'max_tokens'; did you mean 'max_new_tokens'"),
        ({"temprature": 0.5}, "did you mean 'temperature'"),
        ({"temperature": 0.5}, "does nothing without do_sample=True"),
        ({"stop": [""]}, "empty stop string"),
        ({"seed": -1}, "seed"),
        ({"max_batch": 0}, "max_batch must be at least 1; got 0"),
    ],
)
def test_bad_options_are_one_line_that_names_them(team: Team, options: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        team.generate(["hi"], **options)
    assert "\n" not in str(caught.value)
    if "max_batch" not in options:
        with pytest.raises(SettingsError, match=message):
            team.stream("hi", **options)


@pytest.mark.parametrize("prompts", ["hi", b"hi", 5, [1, 2, 3], [{"role": "user", "content": "hi"}]])
def test_one_prompt_is_not_a_list_of_prompts(team: Team, prompts) -> None:
    with pytest.raises(PromptError, match=r"write \[prompt\]"):
        team.generate(prompts)


def test_one_bad_prompt_stops_the_call_before_any_work(team: Team) -> None:
    with pytest.raises(PromptError, match="the prompt is empty"):
        team.generate(["fine", ""])
    with pytest.raises(PromptError, match="smallest context"):
        team.stream("x" * 200)


def test_an_engine_reads_as_it_is_told(team: Team) -> None:
    engine = team.engine(prefix_reuse=False, prefill_chunk=7)
    assert engine.prefill_chunk == 7
    assert {runner.prefixes for runner in engine.method.runners} == {None}
    assert all(runner.prefixes is not None for runner in team.engine().method.runners)
    with pytest.raises(SettingsError, match="prefill_chunk is a number of tokens"):
        team.engine(prefill_chunk=0)
