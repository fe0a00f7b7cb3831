"""Sharpening against loops over strings, and by hand."""

import math
import random

import pytest
import torch
from torch import Tensor

from fusionroute.errors import SettingsError
from fusionroute.ops.sharpening import check_sharpening, geometric, prefix, sharpen

STRINGS = [b" ", b" I", b"C", b"Correct", b"I", b"In", b"Inc", b"Incorrect", b"o"]
EVERYBODY = torch.ones(len(STRINGS), dtype=torch.bool)


def ends_of(strings: list[bytes]) -> Tensor:
    """Strings that start with another stand right behind it when sorted."""
    return torch.tensor([at + sum(longer.startswith(text) for longer in strings) for at, text in enumerate(strings)])


ENDS = ends_of(STRINGS)
#                      " "   " I"  C     Corr. I     In    Inc   Incor. o
FLAT = torch.tensor([0.11, 0.05, 0.01, 0.30, 0.05, 0.11, 0.15, 0.20, 0.02])


def test_the_mass_of_longer_strings_comes_back_to_their_beginning() -> None:
    targets = EVERYBODY.clone()
    targets[0] = False
    found = prefix(FLAT, ENDS, targets)
    # In .11 + .15 + .20, Inc .15 + .20; C and I are below the threshold; " " is no target
    expected = [0.11, 0.05, 0.01, 0.30, 0.05, 0.46, 0.35, 0.20, 0.02]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert FLAT[6] == pytest.approx(0.15), "the average itself stays as it is"


def test_gains_do_not_cascade() -> None:
    # a .12 + .12 + .12, not + the .24 that ab becomes
    found = prefix(torch.tensor([0.12, 0.12, 0.12, 0.2]), torch.tensor([3, 3, 3, 4]), torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(found, torch.tensor([0.36, 0.24, 0.12, 0.2]))


def test_the_threshold_itself_is_not_enough() -> None:
    targets = torch.tensor([True, True])
    for value, gained in ((0.25, 0.25), (0.2500001, 0.45)):
        found = prefix(torch.tensor([value, 0.2]), torch.tensor([2, 2]), targets, threshold=0.25)
        assert float(found[0]) == pytest.approx(gained, abs=1e-5)


@pytest.mark.parametrize("kind", ["prefix", "geometric"])
def test_one_half_is_sure_and_nothing_changes(kind: str) -> None:
    each = torch.tensor([[0.2, 0.8, 0.0], [0.2, 0.2, 0.6]])
    weights, ends, targets = torch.tensor([0.5, 0.5]), torch.tensor([3, 2, 3]), torch.ones(3, dtype=torch.bool)
    sure = torch.tensor([0.2, 0.5, 0.3])
    assert sharpen(kind, sure, each, weights, ends, targets) is sure
    flat = torch.tensor([0.2, 0.49, 0.31])
    assert not sharpen(kind, flat, each, weights, ends, targets).equal(flat)
    assert sharpen("none", flat, each, weights, ends, targets) is flat


def test_geometric_is_the_weighted_product() -> None:
    each = torch.tensor([[0.4, 0.3, 0.3], [0.0, 0.5, 0.1], [0.9, 0.0, 0.2]])
    found = geometric(each, torch.tensor([0.25, 0.75, 0.0]))
    expected = [0.0, 0.3**0.25 * 0.5**0.75, 0.3**0.25 * 0.1**0.75]
    torch.testing.assert_close(found, torch.tensor(expected))
    two = geometric(each[:2], torch.tensor([0.5, 0.5]))
    assert two.tolist() == pytest.approx([0, math.sqrt(0.15), math.sqrt(0.03)])


def test_a_product_that_excludes_everything_says_nothing() -> None:
    each = torch.tensor([[0.6, 0.4, 0.0, 0.0], [0.0, 0.0, 0.3, 0.7]])
    weights = torch.tensor([0.5, 0.5])
    average = weights @ each
    assert sharpen("geometric", average, each, weights, torch.arange(1, 5), EVERYBODY[:4]) is average


def test_prefix_equals_a_loop_over_strings() -> None:
    dice = random.Random(4)
    for _ in range(60):
        strings = sorted({bytes(dice.choices(b"ab ", k=dice.randint(1, 4))) for _ in range(dice.randint(2, 25))})
        mass = torch.tensor([dice.random() ** 3 for _ in strings])
        mass /= mass.sum() * dice.choice([1, 1.5])
        targets = torch.tensor([dice.random() < 0.7 for _ in strings])
        threshold = dice.choice([0.02, 0.1])
        expected = []
        for text, own, may in zip(strings, mass.tolist(), targets.tolist(), strict=True):
            longer = sum(p for u, p in zip(strings, mass.tolist(), strict=True) if u != text and u.startswith(text))
            expected.append(own + (longer if may and own > threshold and max(mass.tolist()) < 0.5 else 0))
        assert prefix(mass, ends_of(strings), targets, threshold).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 10, float("nan")])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(SettingsError, match=f"threshold is a probability between 0 and 1.*; got {threshold}"):
        check_sharpening("prefix", threshold)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(SettingsError, match=r"sharpening: unknown option 'prefx'; did you mean 'prefix'\?"):
        sharpen("prefx", FLAT, FLAT[None], torch.ones(1), ENDS, EVERYBODY)
