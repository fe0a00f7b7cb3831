"""Drafts on scripted models, with answers written out by hand; that on = off stands in tests/invariants/."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

import tiny_scripted
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.speculation import SpeculationSettings
from fusionroute.engine.speculation.ngram import Index
from fusionroute.engine.speculation.positions import Positions, part_of
from fusionroute.errors import SettingsError
from fusionroute.methods.fusion_route import FusionRoute
from tiny_speculation import CYCLE, END, UNSURE, A, B, C, follows, team


def method(models: Any, drafter: str = "router", draft: list[list[float]] | None = None, **options) -> FusionRoute:
    settings = SpeculationSettings(
        drafter=drafter, model="scripted" if draft else None, **{"max_draft": 4, "adaptive": False, **options}
    )
    return FusionRoute(models, speculation=settings, draft_model=None if draft is None else tiny_scripted.bigram(draft))


def write(made: FusionRoute, new: int = 10, prompt: list[int] | None = None, **settings) -> list[int]:
    engine = Engine(made)
    (completion,) = engine.generate([prompt or [A]], GenerationSettings(max_new_tokens=new, **settings))
    assert tiny_scripted.caches_are_empty(engine)
    return completion.token_ids


def passes(made: FusionRoute) -> dict[str, int]:
    return {runner.name: runner.passes for runner in made.runners}


def test_a_router_that_is_always_right_leaves_the_experts_one_pass_a_round() -> None:
    made = method(team(follows(*CYCLE), follows(*CYCLE)))
    assert write(made) == [B, C, A, B, C, A, B, C, A, B]
    assert (made.drafted, made.kept) == (8, 8)
    assert passes(made) == {"router": 10, "expert0": 2}  # two rounds of four drafted tokens and one behind them


def test_a_router_that_is_never_right_changes_nothing() -> None:
    made = method(team(follows(C, A, B, B, certainty=0.5), follows(*CYCLE, certainty=0.999)))
    assert write(made, 6) == [B, C, A, B, C, A]
    assert made.kept == 0
    # drafts of 4, 4, 3, 2, 1 and no tokens: of an answer that may have no more, none are drafted
    assert (made.drafted, passes(made)) == (14, {"router": 20, "expert0": 6})


def test_what_is_right_up_to_a_token_is_kept_up_to_it() -> None:
    # the router is wrong behind c alone, where the expert is the surer one
    router = [row if last != C else follows(C, A, B, B, certainty=0.5)[C] for last, row in enumerate(follows(*CYCLE))]
    made = method(team(router, follows(*CYCLE, certainty=0.999)))
    assert write(made, 9) == [B, C, A, B, C, A, B, C, A]
    # three rounds of b, c, and the a that stands where the router drafted b
    assert (made.kept, passes(made)["expert0"]) == (6, 3)


def test_each_expert_reads_its_part_once_a_round() -> None:
    made = method(team(follows(*CYCLE), follows(*CYCLE), follows(*CYCLE), follows(*CYCLE)), max_draft=5)
    assert write(made, 12) == [B, C, A] * 4
    assert passes(made) == {"router": 12, "expert0": 2, "expert1": 2, "expert2": 2}


def test_a_draft_model_is_asked_instead_of_the_router() -> None:
    made = method(team(follows(*CYCLE), follows(*CYCLE)), "model", follows(*CYCLE))
    assert write(made) == [B, C, A, B, C, A, B, C, A, B]
    assert passes(made) == {"router": 2, "expert0": 2, "draft model": 8}


def test_a_draft_model_that_says_nan_drafts_nothing_and_ends_nothing() -> None:
    made = method(team(follows(*CYCLE), follows(*CYCLE)), "model", follows(*CYCLE))
    with torch.no_grad():
        made.speculation.runners[0].model.lm_head.weight.fill_(math.nan)
    assert write(made, 6) == [B, C, A, B, C, A]
    assert (made.drafted, passes(made)["draft model"]) == (0, 1)  # asked once


def test_a_draft_model_drafts_no_further_than_its_context() -> None:
    models = team(follows(*CYCLE), follows(*CYCLE))
    small = tiny_scripted.bigram(follows(*CYCLE), max_position_embeddings=6)
    settings = SpeculationSettings(drafter="model", model="small", max_draft=4, adaptive=False)
    made = FusionRoute(models, speculation=settings, draft_model=small)
    assert write(made, 12) == [B, C, A] * 4
    assert made.drafted == 4
    assert made.speculation.runners[0].tokens_read <= 6


def test_an_answer_that_has_repeated_itself_is_drafted_without_any_model() -> None:
    made = method(team(follows(*CYCLE), follows(*CYCLE)), "ngram")
    assert write(made, 14) == ([B, C, A] * 5)[:14]
    # a b c a b stand when "a b" is known to go on with c: from then on rounds of five
    assert passes(made) == {"router": 6, "expert0": 6}
    assert (made.drafted, made.kept) == (8, 8)


def test_a_draft_stops_before_the_end_and_the_end_is_written() -> None:
    ending = follows(B, C, END, A)
    for drafter, draft in (("router", None), ("model", ending)):
        made = method(team(ending, ending, eos=frozenset({END})), drafter, draft)
        assert write(made) == [B, C, END]
        assert (made.drafted, made.kept) == (2, 2)
        assert write(made, 8, ignore_eos=True) == [B, C, END, A, B, C, END, A]
    copied = method(team(ending, ending, eos=frozenset({END})), "ngram")
    assert write(copied, prompt=[A, B, C, END, A]) == [B, C, END]


def test_an_end_inside_a_draft_ends_the_answer_there() -> None:
    made = method(team(follows(*CYCLE), follows(*CYCLE), eos=frozenset({C})), "model", follows(*CYCLE))
    sequence = Engine(made).sequence([A], GenerationSettings(max_new_tokens=8))
    sequence.eos_ids = frozenset()  # the drafter does not see it coming
    positions = made.speculation.begin([sequence])
    sequence.eos_ids = frozenset({C})
    assert positions.drafts == [[B, C, A, B]]
    made._write(positions)
    made.speculation.end(positions, made.runners)
    assert (sequence.output_ids, sequence.finish_reason) == ([B, C], "stop")


def test_penalties_count_what_is_drafted() -> None:
    settings = {"frequency_penalty": 2.0}
    models = team(follows(*CYCLE, certainty=UNSURE), follows(*CYCLE, certainty=UNSURE))
    wanted = write(FusionRoute(models), 12, **settings)
    assert wanted != [B, C, A] * 4
    for drafter, draft in (("router", None), ("ngram", None), ("model", follows(*CYCLE, certainty=UNSURE))):
        made = method(models, drafter, draft)
        assert write(made, 12, **settings) == wanted
        if drafter != "ngram":
            assert made.kept == made.drafted, "the drafter chooses as the answer does, penalties among it"


def test_drafts_leave_their_sequences_whatever_happens() -> None:
    made = method(team(follows(*CYCLE), follows(*CYCLE)))
    engine = Engine(made)
    sequence = engine.submit([A], GenerationSettings(max_new_tokens=9))
    made.experts[0].read = lambda *_: 1 / 0  # type: ignore[assignment, method-assign]
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert sequence.token_ids == [A]
    assert made.router.cache.lengths[sequence] == 0
    assert (made.drafted, made.kept) == (0, 0)


def test_a_model_that_fails_in_a_draft_ends_that_answer_alone() -> None:
    team_of_two = team(follows(*CYCLE), follows(*CYCLE), follows(*CYCLE))
    with torch.no_grad():
        team_of_two.experts["expert1"].lm_head.weight.fill_(math.nan)
    made = method(team_of_two, max_draft=1)
    engine = Engine(made)
    first, second = (engine.submit([token], GenerationSettings(max_new_tokens=1)) for token in (A, B))
    engine.run([first, second])
    assert (first.output_ids, second.finish_reason) == ([B], "error")
    assert "expert1" in (second.error or "")


# pure parts


def test_of_the_tokens_chosen_those_stand_that_were_drafted() -> None:
    sequences = [Sequence([9], GenerationSettings(max_new_tokens=9)) for _ in range(3)]
    positions = Positions(sequences)
    for at, draft in enumerate(([5, 6], [], [7])):
        for token in draft:
            positions.append(at, token)
    assert [drawn.position for drawn in positions.drawings] == [0, 1, 2, 0, 0, 1]
    assert [drawn.output_ids for drawn in positions.drawings] == [[], [5], [5, 6], [], [], [7]]
    assert positions.settle([5, 1, 2, 3, 7, 8]) == [0, 1, 3, 4, 5]
    assert positions.accepted == [1, 0, 1]
    assert positions.written == [sequences[at] for at in (0, 0, 1, 2, 2)]
    positions.withdraw()
    assert [sequence.token_ids for sequence in sequences] == [[9]] * 3


def test_an_expert_speaks_from_the_first_position_that_is_its_own() -> None:
    part = part_of(1, [0, 1, 0, 1, 0, 0, 1], counts=[4, 2, 1])
    assert (part.readers, part.lasts, part.rows, part.places) == ([0, 2], [3, 1], [1, 3, 6], [0, 2, 3])


def test_a_text_goes_on_as_it_did_behind_the_longest_run_it_ends_with() -> None:
    index = Index()
    text = [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]
    assert index.continuation(text, 3) == [4, 9, 2]  # 1 2 3, not the newer 2 3
    assert index.continuation([*text, 5, 7], 3) == []
    assert index.continuation([*text, 5, 7, 2, 3], 2) == [5, 7]  # the newest of those that are as long
    assert Index().continuation([8, 8, 8], 4) == [8, 8, 8, 8]
    assert Index().continuation([5, 6, 5, 6, 5], 5) == [6, 5, 6, 5, 6]
    assert Index().continuation([5], 3) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_draft": 0}, "at least 1"),
        ({"max_draft": -3}, "at least 1"),
        ({"drafter": "model"}, "needs model"),
        ({"drafter": "ngram", "model": "a/b"}, "set drafter to 'model' or drop model"),
        ({"drafter": "ngrams"}, "ngram"),
        ({"max_drafts": 2}, "did you mean 'max_draft'"),
        ("ruter", "did you mean 'router'"),
        (7, "a drafter's name"),
    ],
)
def test_bad_settings_say_what_to_do(options: Any, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        SpeculationSettings.of(options)


def test_a_name_stands_for_settings() -> None:
    assert SpeculationSettings.of(None) is None
    assert SpeculationSettings.of("ngram") == SpeculationSettings(drafter="ngram")
    model = SpeculationSettings.of("owner/small")
    assert model is not None
    assert model.model is not None
    assert model.model.model == "owner/small"
    assert SpeculationSettings.of({"drafter": "model", "model": "owner/small"}) == model


# sampling: the exact fused distribution

ROUTER = [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1], [0.3, 0.3, 0.1, 0.3]]
EXPERTS = (
    [[0.1, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2], [0.7, 0.1, 0.1, 0.1], [0.2, 0.1, 0.6, 0.1]],
    [[0.2, 0.2, 0.2, 0.4], [0.5, 0.1, 0.3, 0.1], [0.1, 0.4, 0.1, 0.4], [0.1, 0.3, 0.3, 0.3]],
)
DRAFT = [[0.4, 0.4, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1], [0.3, 0.2, 0.3, 0.2], [0.2, 0.2, 0.5, 0.1]]
LENGTH, PER_BATCH = 3, 1000


def exact() -> torch.Tensor:
    """Probabilities of all answers of three tokens after `A`; the last token picks the expert."""
    following = torch.tensor(ROUTER) * torch.stack([torch.tensor(EXPERTS[last % 2])[last] for last in range(4)])
    following /= following.sum(-1, keepdim=True)
    return torch.einsum("i,ij,jk->ijk", following[A], following, following).flatten()


def p_value(drafter: str, draft: list[list[float]] | None, draws: int) -> float:
    made = method(team(ROUTER, *EXPERTS), drafter, draft, max_draft=LENGTH - 1)
    engine = Engine(made, max_batch=PER_BATCH, prefix_reuse=False)
    counts = torch.zeros(4**LENGTH)
    for _ in range(draws // (LENGTH * PER_BATCH) + 1):
        settings = GenerationSettings(max_new_tokens=LENGTH, do_sample=True)  # without a seed: a random one for each
        for completion in engine.generate([[C, A, B, A]] * PER_BATCH, settings):
            first, second, third = completion.token_ids
            counts[16 * first + 4 * second + third] += 1
    assert 0 < made.kept < (made.drafted or 0)
    return float(chisquare(counts, exact() * counts.sum()).pvalue)


@pytest.mark.parametrize(("drafter", "draft"), [("router", None), ("ngram", None), ("model", DRAFT)])
def test_what_is_sampled_has_the_fused_distribution(drafter: str, draft: list[list[float]] | None) -> None:
    assert p_value(drafter, draft, draws=6_000) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("drafter", "draft"), [("router", None), ("ngram", None), ("model", DRAFT)])
def test_two_hundred_thousand_draws_have_the_fused_distribution(drafter: str, draft: list[list[float]] | None) -> None:
    assert p_value(drafter, draft, draws=200_000) > 1e-4
