"""From distributions to tokens and records, on numbers worked out by hand."""

import math

import pytest
import torch

from fusionroute.config import GenerationSettings
from fusionroute.engine.choice import FUSED, append_tokens, choose_tokens
from fusionroute.engine.sequence import Sequence, TraceRecord
from fusionroute.errors import SettingsError
from fusionroute.ops.sampling import draw, uniform

LOGITS = torch.tensor([[0.1, 0.2, 0.7]] * 3).log()


def sequence(written: list[int] | None = None, **settings: object) -> Sequence:
    made = Sequence([1, 1, 1], GenerationSettings(**settings))
    for token in written or []:
        made.append(TraceRecord(token, "math"))
    return made


def test_each_row_has_its_own_penalties_and_the_prompt_does_not_count() -> None:
    # log(.7 / .2) = 1.25: once 2 stands, 1 wins against a penalty of 1.3; at frequency .7 only after the second time
    rows = [sequence([2], presence_penalty=1.3), sequence([2], frequency_penalty=0.7), sequence([2, 2])]
    assert choose_tokens(LOGITS, rows).tolist() == [1, 2, 2]
    rows = [sequence([2], presence_penalty=1.2), sequence([2, 2], frequency_penalty=0.7), sequence(presence_penalty=2)]
    assert choose_tokens(LOGITS, rows).tolist() == [2, 1, 2]
    # token 1 is the prompt's: 2 x log(.2) would still lose, .2 e^2 would win
    assert choose_tokens(LOGITS[:1], [sequence(presence_penalty=-2)]).tolist() == [2]
    assert choose_tokens(LOGITS[:1], [sequence([1], presence_penalty=-2)]).tolist() == [1]


def test_penalties_come_before_the_temperature() -> None:
    drawn = []
    for seed in range(50):
        row = sequence([2], do_sample=True, temperature=0.5, presence_penalty=1.0, seed=seed)
        (token,) = choose_tokens(LOGITS[:1], [row]).tolist()
        wanted = (LOGITS[:1] - torch.tensor([[0.0, 0.0, 1.0]])) / 0.5
        assert token == draw(wanted, torch.tensor([uniform(seed, 1)])).item()
        drawn.append(token)
    assert {1, 2} <= set(drawn)


def test_a_penalty_taken_back_with_its_token_is_gone() -> None:
    row = sequence([2], presence_penalty=1.3)
    row.rollback(3)
    assert choose_tokens(LOGITS[:1], [row]).tolist() == [2]


def test_logprobs_are_of_the_distribution_before_penalties() -> None:
    row = sequence([2], presence_penalty=1.3, logprobs=1, candidates=1)
    append_tokens([row], choose_tokens(LOGITS[:1], [row]), LOGITS[:1], experts=["math"])
    record = row.trace[-1]
    assert (record.token_id, record.logprob) == (1, pytest.approx(math.log(0.2), abs=1e-6))
    assert record.top_logprobs == ((2, pytest.approx(math.log(0.7), abs=1e-6)),)
    assert record.candidates == (("math", record.top_logprobs),), "without other opinions the expert's is all there is"


def test_candidates_of_every_opinion_for_rows_that_ask() -> None:
    flipped = LOGITS.flip(-1)
    rows = [sequence(candidates=2), sequence(), sequence(candidates=1)]
    names = ["math", "code", "chat"]
    opinions = [("router", flipped), (names, LOGITS), (FUSED, LOGITS + flipped)]
    append_tokens(rows, LOGITS.argmax(-1), LOGITS, experts=names, opinions=opinions)
    (first,), (second,), (third,) = (row.trace for row in rows)
    assert [name for name, _ in first.candidates] == ["router", "math", "fused"]
    assert [name for name, _ in third.candidates] == ["router", "chat", "fused"]
    assert second.candidates == ()
    # fused: .07 .04 .07, normalised by .18
    found = {name: dict(best) for name, best in first.candidates}
    assert found["router"] == {0: pytest.approx(math.log(0.7)), 1: pytest.approx(math.log(0.2))}
    assert found["math"] == {2: pytest.approx(math.log(0.7)), 1: pytest.approx(math.log(0.2))}
    assert found["fused"] == {token: pytest.approx(math.log(0.07 / 0.18)) for token in (0, 2)}
    assert [len(best) for _, best in third.candidates] == [1, 1, 1]
    assert [len(best) for _, best in _record(sequence(candidates=20)).candidates] == [3], "no more than there are"
    assert _record(sequence(candidates=0)).candidates == (("math", ()),)


def _record(row: Sequence) -> TraceRecord:
    append_tokens([row], LOGITS[:1].argmax(-1), LOGITS[:1], experts=["math"])
    return row.trace[-1]


@pytest.mark.parametrize(
    "settings",
    [{"presence_penalty": 2.1}, {"frequency_penalty": -3}, {"candidates": 21}, {"prompt_logprobs": -1}],
)
def test_settings_out_of_range_name_themselves(settings: dict) -> None:
    with pytest.raises(SettingsError, match=next(iter(settings))):
        GenerationSettings.parse(settings)
