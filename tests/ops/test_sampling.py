"""Filters against transformers' own warpers; draws against hand-made tables and a chi-square."""

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fusionroute.ops.sampling import draw, filter_logits, keep_top_k, keep_top_p, uniform

LOGITS = torch.randn(16, 97, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"temperature": 0.7}, TemperatureLogitsWarper(0.7)),
        ({"top_k": 5}, TopKLogitsWarper(5)),
        ({"top_p": 0.8}, TopPLogitsWarper(0.8)),
        ({"top_p": 0.01}, TopPLogitsWarper(0.01)),
        ({"min_p": 0.2}, MinPLogitsWarper(0.2)),
    ],
)
def test_each_filter_is_that_of_transformers(ours: dict, theirs) -> None:
    torch.testing.assert_close(filter_logits(LOGITS, **ours), theirs(None, LOGITS.clone()))


def test_filters_together_follow_the_order_of_transformers() -> None:
    expected = LOGITS.clone()
    for warper in (TemperatureLogitsWarper(1.3), TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)):
        expected = warper(None, expected)
    torch.testing.assert_close(filter_logits(LOGITS, 1.3, 20, 0.9, 0.05), expected)


def test_top_k_is_exact_with_ties() -> None:
    kept = keep_top_k(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]), 2)
    assert int(kept.isfinite().sum()) == 2


def test_top_p_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert keep_top_p(logits, 0.79).isfinite().tolist() == [[True, True, False, False]]
    assert keep_top_p(logits, 0.81).isfinite().tolist() == [[True, True, True, False]]
    assert keep_top_p(logits, 1e-9).isfinite().tolist() == [[True, False, False, False]]


def test_no_filter_leaves_the_logits_alone() -> None:
    assert filter_logits(LOGITS) is LOGITS
    assert filter_logits(LOGITS, top_k=97, top_p=1.0, min_p=0.0) is LOGITS


def test_draw_inverts_the_distribution_function() -> None:
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3]).log().expand(5, 4)
    numbers = torch.tensor([0.0, 0.199, 0.201, 0.699, 0.999999])
    assert draw(logits, numbers).tolist() == [0, 0, 2, 2, 3]


def test_draw_never_takes_an_excluded_token() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).expand(3, 5)
    assert draw(logits, torch.tensor([0.0, 0.5, 1 - 2**-24])).tolist() == [1, 3, 3]


def test_drawn_frequencies_match_the_distribution() -> None:
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1])
    numbers = torch.tensor([uniform(7, position) for position in range(4000)])
    counts = draw(probabilities.log().expand(4000, 4), numbers).bincount(minlength=4)
    chi_square = ((counts - 4000 * probabilities) ** 2 / (4000 * probabilities)).sum()
    assert chi_square < 16.27  # the 99.9 % point with three degrees of freedom


def test_uniform_depends_on_seed_and_position_alone() -> None:
    assert uniform(1, 5) == uniform(1, 5)
    assert len({uniform(seed, position) for seed in range(5) for position in range(5)}) == 25
    assert all(0 <= uniform(2**63 - 1, position) < 1 for position in (0, 1, 10**6))
