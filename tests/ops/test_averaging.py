"""Averages written out by hand."""

import pytest
import torch

from fusionroute.errors import SettingsError
from fusionroute.ops.averaging import average, contributions, normalised_weights

ONE, OTHER = [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]
BOTH = torch.tensor([ONE, OTHER]).log()
QUARTERS = torch.tensor([0.75, 0.25])


def test_the_average_of_probabilities() -> None:
    # .75*.5+.25*.2 = .425, .75*.4+.25*.2 = .35, .75*.1+.25*.6 = .225
    torch.testing.assert_close(average(BOTH, QUARTERS).exp(), torch.tensor([0.425, 0.35, 0.225]))


def test_the_average_of_log_probabilities_is_a_geometric_mean() -> None:
    both = torch.tensor([[0.64, 0.32, 0.04], [0.01, 0.08, 0.91]]).log()
    # with equal weights sqrt(.64*.01) = .08, sqrt(.32*.08) = .16, sqrt(.04*.91) = .19079; their sum is .43079
    found = average(both, torch.tensor([0.5, 0.5]), "log_probabilities").exp()
    torch.testing.assert_close(found, torch.tensor([0.08, 0.16, 0.1907878]) / 0.4307878)


@pytest.mark.parametrize("space", ["probabilities", "log_probabilities"])
def test_a_model_of_weight_0_has_no_say(space: str) -> None:
    certain = torch.tensor([[0.5, 0.4, 0.1], [0.0, 0.0, 1.0]]).log()  # 0 times -inf is no number
    torch.testing.assert_close(average(certain, torch.tensor([1.0, 0.0]), space), BOTH[0])


def test_a_token_that_one_model_excludes() -> None:
    both = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]).log()
    half = torch.tensor([0.5, 0.5])
    torch.testing.assert_close(average(both, half).exp(), torch.tensor([0.375, 0.375, 0.25]))
    torch.testing.assert_close(average(both, half, "log_probabilities").exp(), torch.tensor([0.5, 0.5, 0.0]))


@pytest.mark.parametrize("space", ["probabilities", "log_probabilities"])
def test_more_dimensions_are_averaged_one_by_one(space: str) -> None:
    torch.manual_seed(0)
    logs = torch.randn(2, 4, 3, 7).log_softmax(-1)
    together = average(logs, QUARTERS, space)
    assert together.shape == (4, 3, 7)
    torch.testing.assert_close(together[2, 1], average(logs[:, 2, 1], QUARTERS, space))
    torch.testing.assert_close(together.logsumexp(-1), torch.zeros(4, 3), atol=1e-6, rtol=0)


def test_half_precision_is_averaged_in_float32_and_double_stays() -> None:
    assert average(BOTH.bfloat16(), QUARTERS).dtype == torch.float32
    assert average(BOTH.double(), QUARTERS).dtype == torch.float64


def test_contributions_add_up_to_the_average() -> None:
    parts = contributions(BOTH, QUARTERS)
    torch.testing.assert_close(parts[:, 0].exp(), torch.tensor([0.375, 0.05]))
    torch.testing.assert_close(parts.exp().sum(0), average(BOTH, QUARTERS).exp())


def test_weights_are_scaled_to_sum_1() -> None:
    assert normalised_weights([3, 1]) == [0.75, 0.25]
    assert normalised_weights([0, 2.0]) == [0.0, 1.0]


@pytest.mark.parametrize("weights", [[1, -1], [0.0, 0.0], [float("nan"), 1], [float("inf"), 1], [1e308, 1e308]])
def test_weights_that_are_none(weights: list[float]) -> None:
    with pytest.raises(SettingsError, match="weights are 0 or more, at least one of them above 0; got"):
        normalised_weights(weights)


def test_a_misspelt_space_is_named() -> None:
    with pytest.raises(SettingsError, match="space: unknown option 'probability'; did you mean 'probabilities'"):
        average(BOTH, QUARTERS, "probability")
