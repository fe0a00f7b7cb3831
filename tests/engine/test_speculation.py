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
from fusionroute.engine.speculation.model import PART
from fusionroute.engine.speculation.ngram import Index
from fusionroute.engine.speculation.positions import Positions, part_of
from fusionroute.errors import SettingsError
from fusionroute.methods.fusion_route import FusionRoute
from tiny_speculation import CYCLE, END, UNSURE, A, B, C, follows, long, team


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
    positions = Positions([sequence])
    made.speculation.begin(positions)
    sequence.eos_ids = frozenset({C})
    assert positions.drafts == [[B, C, A, B]]
    made._write(positions)
    made.speculation.end(positions, made.runners)
    assert (sequence.output_ids, sequence.finish_reason) == ([B, C], "stop")
    assert (made.drafted, made.kept) == (4, 2), "what is not written is not kept, though it was accepted"


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


def test_a_drafter_that_raises_leaves_no_trace() -> None:
    made = method(team(follows(*CYCLE), follows(*CYCLE)), "model", follows(*CYCLE))
    engine = Engine(made)
    sequence = engine.submit([A], GenerationSettings(max_new_tokens=9))
    (drafter,) = made.speculation.runners
    read, calls = drafter.read, []

    def fail_in_the_third_pass(*arguments):
        calls.append(arguments)
        return 1 / 0 if len(calls) == 3 else read(*arguments)

    drafter.read = fail_in_the_third_pass
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert sequence.token_ids == [A]
    assert drafter.cache.lengths[sequence] == 0
    engine.run([sequence])
    assert sequence.output_ids == [B, C, A] * 3


def broken_behind(models: Any, token: int, *names: str) -> Any:
    """These models say NaN wherever the token stands in the text."""
    for name in names:
        model = models.router.lm if name == "router" else models.experts[name]
        with torch.no_grad():
            model.get_input_embeddings().weight[token] = math.nan
    return models


@pytest.mark.parametrize("names", [("router",), ("expert0",), ("expert0", "router")])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_failure_behind_a_rejected_token_is_none(names: tuple[str, ...], adaptive: bool) -> None:
    """The router drafts END behind A, where the expert writes B, and what is longer stands in the same batch."""
    models = broken_behind(team(follows(END, A, B, B, certainty=0.5), follows(*CYCLE, certainty=0.999)), END, *names)
    engine = Engine(method(models, adaptive=adaptive))
    prompts = [[A], [A, B, C, A, B, C, A, B, C, A]]
    found = engine.generate(prompts, GenerationSettings(max_new_tokens=12))
    assert [completion.error for completion in found] == [None, None]
    assert [completion.token_ids for completion in found] == [[B, C, A] * 4] * 2
    assert tiny_scripted.caches_are_empty(engine)


@pytest.mark.parametrize("drafter", ["router", "ngram", "model"])
def test_a_failure_behind_an_accepted_token_is_told_where_it_is_without_speculation(drafter: str) -> None:
    """Behind the C of the answer the expert says NaN: what was written before it stays."""

    def ending(made: FusionRoute) -> list[tuple[list[int], str, str | None]]:
        found = Engine(made).generate([[A], [B, A, B, A]], GenerationSettings(max_new_tokens=9))
        return [(each.token_ids, each.finish_reason, each.error) for each in found]

    models = broken_behind(team(follows(*CYCLE), follows(*CYCLE)), C, "expert0")
    wanted = ending(FusionRoute(models))
    assert wanted[0] == ([B, C], "error", "model 'expert0' returned NaN logits after 3 tokens")
    assert ending(method(models, drafter, follows(*CYCLE) if drafter == "model" else None)) == wanted


def test_a_failure_at_a_row_of_another_expert_is_none() -> None:
    """Behind B the second expert writes, and it says NaN behind the END that is drafted there and never written."""
    drafts = follows(B, END, A, A, certainty=0.5)
    right = follows(*CYCLE, certainty=0.999)
    models = broken_behind(team(drafts, right, right), END, "expert1")
    assert write(method(models), 9) == write(FusionRoute(models), 9) == [B, C, A] * 3


def test_a_model_that_fails_on_one_sequence_ends_that_answer_alone() -> None:
    models = team(follows(*CYCLE), follows(*CYCLE), follows(*CYCLE))
    with torch.no_grad():
        models.experts["expert1"].lm_head.weight.fill_(math.nan)
    engine = Engine(method(models, max_draft=1))
    first, second = (engine.submit([token], GenerationSettings(max_new_tokens=1)) for token in (A, B))
    engine.run([first, second])
    assert (first.output_ids, second.finish_reason) == ([B], "error")
    assert "expert1" in (second.error or "")


@pytest.mark.parametrize("length", [1500, 4000])
@pytest.mark.parametrize("adaptive", [True, False])
def test_a_draft_model_reads_a_long_prompt_in_parts_and_then_drafts(length: int, adaptive: bool) -> None:
    """Reading it takes some rounds, of which nothing is learnt."""
    right = follows(*CYCLE, certainty=0.999)
    models = team(right, right, context_length=8192)
    settings = SpeculationSettings(drafter="model", model="scripted", max_draft=8, adaptive=adaptive)
    made = FusionRoute(models, speculation=settings, draft_model=long(right))
    (drafter,) = made.speculation.runners
    if made.speculation.pace is not None:  # by a clock of passes
        made.speculation.pace.clock = lambda: made.router.passes + drafter.passes / 16
    engine = Engine(made)
    sequence = engine.submit([C] * (length - 1) + [A], GenerationSettings(max_new_tokens=90))
    most = 0
    while not sequence.is_finished:
        before, drafted = drafter.tokens_read, made.drafted
        engine.step()
        if made.drafted == drafted:
            most = max(most, drafter.tokens_read - before)
    assert 0 < most <= PART
    assert made.kept == made.drafted > 50
    assert sequence.output_ids == [B, C, A] * 30


def test_a_round_looks_at_no_more_positions_than_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[A], [B], [C], [A]]

    def tokens(made: FusionRoute) -> list[list[int]]:
        return [each.token_ids for each in Engine(made).generate(prompts, GenerationSettings(max_new_tokens=12))]

    models = team(follows(*CYCLE), follows(*CYCLE))
    wanted = tokens(method(models, max_draft=8))
    for most, kept in ((3, 0), (8, None), (13, None)):
        monkeypatch.setattr("fusionroute.engine.speculation.speculation.MAX_LOGITS", most * 4)
        made = method(models, max_draft=8)
        asked, read = list[int](), made.experts[0].read

        def watched(sequences, lasts, asked=asked, read=read):
            asked.append(len(sequences) * max(lasts))
            return read(sequences, lasts)

        made.experts[0].read = watched
        assert tokens(made) == wanted
        assert max(asked) <= max(most, len(prompts))
        assert kept is None or made.kept == kept


def test_a_draft_model_may_be_padded_to_another_size() -> None:
    """It never drafts ids that the team lacks, and drafts nothing behind ids that it lacks itself."""
    wide = [[*row, 0.9, 0.9] for row in follows(*CYCLE)] + [[1 / 6] * 6] * 2
    models = team(follows(*CYCLE), follows(*CYCLE))
    padded = method(models, "model", wide)
    assert write(padded, 9) == [B, C, A] * 3
    assert padded.kept == padded.drafted
    narrow = method(models, "model", [[0.1, 0.9], [0.5, 0.5]])
    assert write(narrow, 9) == [B, C, A] * 3
    assert narrow.speculation.runners[0].tokens_read == 4, "in the first round, before there is a C, and never again"


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
        ({"max_draft": 65}, "at most 64"),
        ({"max_draft": True}, "a number"),
        ({"drafter": "model", "model": ""}, "it is empty; give a small model's folder or hub id"),
        ("ruter", "unknown drafter 'ruter'; did you mean 'router'"),
        ("distilgpt2", "hub id, such as owner/name; there is no folder 'distilgpt2'"),
        ("model", "give a small model's folder or hub id, such as owner/name, instead of 'model'"),
        ("", "give a small model's folder"),
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
    batch = min(PER_BATCH, draws // LENGTH)
    for _ in range(-(-draws // (LENGTH * batch))):
        settings = GenerationSettings(max_new_tokens=LENGTH, do_sample=True)  # without a seed: a random one for each
        for completion in engine.generate([[C, A, B, A]] * batch, settings):
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
