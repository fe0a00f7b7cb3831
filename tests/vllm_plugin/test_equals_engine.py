"""Greedy answers of an exported team in vLLM are those of our engine, token for token, in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import SamplingParams

import tiny
import tiny_exported
from fusionroute import Router, Team
from fusionroute.models.export.export import export_team

PROMPTS = tiny.prompts(64)
NEW = 24
CLOSE = 1e-4  # of log-probabilities; these random models are chaotic


def answers(llm: Any, prompts: list[list[int]], new: int = NEW) -> list[tuple[list[int], list[float]]]:
    """Token ids and their log-probabilities."""
    parameters = SamplingParams(temperature=0, max_tokens=new, logprobs=0)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    found = [output.outputs[0] for output in llm.generate(asked, parameters, use_tqdm=False)]
    return [
        (list(each.token_ids), [step[token].logprob for token, step in zip(each.token_ids, each.logprobs, strict=True)])
        for each in found
    ]


def insist_equal(llm: Any, team: Team, prompts: list[list[int]] = PROMPTS, new: int = NEW, **options: Any) -> None:
    found = answers(llm, prompts, new)
    expected = team.generate(prompts, max_new_tokens=new, logprobs=0, **options)
    assert [ids for ids, _ in found] == [list(each.token_ids) for each in expected]
    ours = [record.logprob for each in expected for record in each.trace]
    theirs = [value for _, values in found for value in values]
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), atol=CLOSE, rtol=CLOSE)
    assert {record.expert for each in expected for record in each.trace} == set(team.expert_names), "nothing to confuse"


@pytest.mark.parametrize("kind", tiny_exported.KINDS)
def test_equal_to_our_engine(kind: str, tmp_path: Path, vllm_running: Callable[..., Any]) -> None:
    team = tiny_exported.team(kind)
    with vllm_running(tiny_exported.exported(team, tmp_path)) as llm:
        insist_equal(llm, team)


def test_equal_without_the_complement_and_with_long_prompts_in_pieces(
    tmp_path: Path, vllm_running: Callable[..., Any]
) -> None:
    """Routing alone, exported so; prompts that share a beginning and are read in pieces, among running answers."""
    team = tiny_exported.team("mixed")
    folder = tiny_exported.exported(team, tmp_path, complement=False)
    beginning = tiny.prompts(1, seed=3, longest=1)[0] * 70
    prompts = [beginning + prompt for prompt in tiny.prompts(16, seed=4)]
    options = {"max_num_batched_tokens": 48, "max_num_seqs": 8, "enable_prefix_caching": True, "block_size": 32}
    with vllm_running(folder, **options) as llm:
        insist_equal(llm, team, prompts, complement=False)
        insist_equal(llm, team, prompts, complement=False)  # now from the prefix cache


def test_one_expert_and_shards_below_the_folder_of_a_model(tmp_path: Path, vllm_running: Callable[..., Any]) -> None:
    """Beside them lie weights that are none of the team's, and are not read."""
    team = tiny_exported.together(tiny_exported.model("llama", 100), {"one": tiny_exported.model("llama", 0)})
    team.save_pretrained(tmp_path / "team", save_experts=True)
    tiny_exported.shards_of_one_name(tmp_path / "team/experts/one")
    export_team(tmp_path / "team", tmp_path / "out")
    for name in ("more.safetensors", "experts/one/model.bin", "router/model.pt"):
        (tmp_path / "out" / name).write_bytes(b"not weights")
    with vllm_running(tmp_path / "out") as llm:
        insist_equal(llm, team)


def test_the_complement_is_an_option_of_serving(tmp_path: Path, vllm_running: Callable[..., Any]) -> None:
    team = tiny_exported.team("zoo")
    folder = tiny_exported.exported(team, tmp_path)
    with vllm_running(folder, hf_overrides={"complement": False}) as llm:
        insist_equal(llm, team, complement=False)


def test_relabelled_experts_answer_the_same(tmp_path: Path, vllm_running: Callable[..., Any]) -> None:
    """Experts in another order and under other names, with a route head (and bias) to match."""
    team = tiny_exported.team("mixed")
    order = [2, 0, 1]
    router = Router(team.router.lm, 3, bias=True)
    with torch.no_grad():
        router.route_head.weight.copy_(team.router.route_head.weight[order])
        router.route_head.bias.fill_(3.0)  # the same for all, so it moves nothing
    models = [team.experts[team.expert_names[at]] for at in order]
    names = ("z", "a", "m")  # in the order of the alphabet they would be confused
    relabelled = Team(router=router, experts=dict(zip(names, models, strict=True)), tokenizer=team.tokenizer)
    expected = team.generate(PROMPTS, max_new_tokens=NEW)
    with vllm_running(tiny_exported.exported(relabelled, tmp_path)) as llm:
        found = answers(llm, PROMPTS)
    assert [ids for ids, _ in found] == [list(each.token_ids) for each in expected]
