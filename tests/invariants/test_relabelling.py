"""Design, section 10: 5. The experts' order and names are labels; the answer does not know them."""

import torch

import tiny
from fusionroute import Router, Team


def test_relabelling_experts_permutes_the_trace_and_nothing_else() -> None:
    team = tiny.team()
    order = [2, 0, 1]
    names = [team.expert_names[at] for at in order]
    router = Router(team.router.lm, 3)
    with torch.no_grad():
        router.route_head.weight.copy_(team.router.route_head.weight[order])
    permuted = Team(router=router, experts={n: team.experts[n] for n in names}, tokenizer=team.tokenizer)
    prompts = tiny.prompts(8, seed=21)
    before, after = team.generate(prompts, max_new_tokens=12), permuted.generate(prompts, max_new_tokens=12)
    for one, other in zip(before, after, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        for left, right in zip(one.trace, other.trace, strict=True):
            assert left.expert == right.expert
            torch.testing.assert_close([left.weights[at] for at in order], list(right.weights))
    renamed = Team(
        router=team.router,
        experts=dict(zip("abc", team.experts.values(), strict=True)),
        tokenizer=team.tokenizer,
    )
    label = dict(zip(team.expert_names, "abc", strict=True))
    for one, other in zip(before, renamed.generate(prompts, max_new_tokens=12), strict=True):
        assert one.token_ids == other.token_ids
        assert [label[record.expert] for record in one.trace] == [record.expert for record in other.trace]
