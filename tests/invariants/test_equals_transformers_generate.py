"""Design, section 10: 3 (one expert and a zero complement = that expert's own generate()), against transformers."""

import re

import pytest
import torch
from transformers import PreTrainedModel

import tiny
from fusionroute import Router, Team

NEW = 14


def silent_router(family: str, num_experts: int = 1) -> Router:
    """A router whose language model prefers no token: its complement adds the same to each."""
    router = tiny.router(family, num_experts)
    torch.nn.init.zeros_(router.lm.get_output_embeddings().weight)
    return router


def generated(model: PreTrainedModel, prompts: list[list[int]], **options) -> list[list[int]]:
    """Transformers' own greedy answers to a left-padded batch, cut after the first EOS."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **options)
    answers = output[:, width:].tolist()
    return [answer[: answer.index(tiny.EOS) + 1] if tiny.EOS in answer else answer for answer in answers]


@pytest.fixture(params=["llama", "gemma2", "qwen3", "mistral", "gemma3"])
def family(request) -> str:
    return request.param


def test_one_expert_with_a_zero_complement_is_that_expert(family: str) -> None:
    expert = tiny.language_model(family)
    team = Team(router=silent_router(family), experts={"only": expert}, tokenizer=tiny.tokenizer())
    prompts = tiny.prompts(8, seed=11)
    alone = [generated(expert, [prompt])[0] for prompt in prompts]
    assert [team.generate([prompt], max_new_tokens=NEW)[0].token_ids for prompt in prompts] == alone
    assert [completion.token_ids for completion in team.generate(prompts, max_new_tokens=NEW)] == alone


def test_batched_generate_agrees_too() -> None:
    expert = tiny.language_model("llama")
    team = Team(router=silent_router("llama"), experts={"only": expert}, tokenizer=tiny.tokenizer())
    prompts = tiny.prompts(8, seed=12)
    found = [completion.token_ids for completion in team.generate(prompts, max_new_tokens=NEW)]
    assert found == generated(expert, prompts)


def test_routing_only_to_one_expert_is_that_expert() -> None:
    expert = tiny.language_model("llama")
    team = Team(router=tiny.router(num_experts=1), experts={"only": expert}, tokenizer=tiny.tokenizer())
    prompts = tiny.prompts(8, seed=13)
    found = team.generate(prompts, max_new_tokens=NEW, complement=False)
    assert [completion.token_ids for completion in found] == [generated(expert, [prompt])[0] for prompt in prompts]


def test_eos_and_stop_strings_end_where_generate_ends() -> None:
    expert = tiny.language_model("llama")
    tokenizer = tiny.tokenizer()
    team = Team(router=silent_router("llama"), experts={"only": expert}, tokenizer=tokenizer)
    prompts, tested = tiny.prompts(8, seed=14), 0
    for prompt, free in zip(prompts, team.generate(prompts, max_new_tokens=NEW), strict=True):
        ends = [free.token_ids[4], 7]  # this very answer now has an end of its own
        expert.generation_config.eos_token_id = ends
        (found,) = team.generate([prompt], max_new_tokens=NEW)
        output = expert.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
        assert found.token_ids == output[0, len(prompt) :].tolist()
        expert.generation_config.eos_token_id = tiny.EOS
        stop = next(iter(re.findall(r"[!-~]{1,2}", free.text[1:])), None)
        if stop:
            tested += 1
            (found,) = team.generate([prompt], max_new_tokens=NEW, stop=stop)
            output = expert.generate(
                torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, stop_strings=[stop], tokenizer=tokenizer
            )
            assert found.token_ids == output[0, len(prompt) :].tolist()
            assert found.text == free.text[: free.text.index(stop)]
    assert tested >= 4, "random answers without any readable character show nothing about stop strings"


def by_hand(team: Team, prompt: list[int], expert: str | None = None) -> tuple[list[int], list[str]]:
    """Eq. (1) on bare transformers models: no engine, no cache, no batch; ``expert`` fixes the choice."""
    ids, written_by = list(prompt), []
    with torch.no_grad():
        while len(ids) < len(prompt) + NEW and (not written_by or ids[-1] != tiny.EOS):
            router = team.router.lm(torch.tensor([ids]), output_hidden_states=True)
            weights = team.router.route_head.weight @ router.hidden_states[-1][0, -1]
            written_by.append(expert or team.expert_names[int(weights.argmax())])
            chosen = team.experts[written_by[-1]](torch.tensor([ids]))
            ids.append(int((router.logits[0, -1].log_softmax(-1) + chosen.logits[0, -1].log_softmax(-1)).argmax()))
    return ids[len(prompt) :], written_by


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_fusion_route_is_equation_1_by_hand(family: str) -> None:
    team = tiny.team(family)
    for prompt in tiny.prompts(6, seed=15):
        (found,) = team.generate([prompt], max_new_tokens=NEW)
        assert (found.token_ids, [record.expert for record in found.trace]) == by_hand(team, prompt)


def test_a_router_fixed_on_one_expert_is_that_expert_plus_the_router() -> None:
    team = tiny.team()
    biased = Router(team.router.lm, 3, bias=True)
    torch.nn.init.zeros_(biased.route_head.weight)
    with torch.no_grad():
        biased.route_head.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    fixed = Team(router=biased, experts=team.experts, tokenizer=team.tokenizer)
    for prompt in tiny.prompts(6, seed=16):
        (found,) = fixed.generate([prompt], max_new_tokens=NEW)
        assert (found.token_ids, [record.expert for record in found.trace]) == by_hand(team, prompt, expert="code")
