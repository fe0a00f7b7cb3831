import pytest

from fusionroute.evaluation.report import wording


@pytest.mark.parametrize(
    ("difference", "text"), [(0.0314, "+3.1"), (-0.0316, "−3.2"), (0.0, "0.0"), (-0.0004, "0.0"), (None, "–")]
)
def test_points(difference: float | None, text: str) -> None:
    assert wording.points(difference) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0, "<\u00a00.001"),
        (0.0123, "0.012"),
        (0.0499, "0.0499"),
        (0.04996, "0.04996"),
        (0.049_999_6, "0.0499996"),
        (0.05, "0.0500"),
        (0.05004, "0.0500"),
        (0.0501, "0.0501"),
        (1.0, "1.000"),
        (None, "–"),
    ],
)
def test_p_values_never_hide_the_side_of_the_level(p: float | None, text: str) -> None:
    assert wording.p_value(p) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0000123, "12.3 µs"), (0.00123, "1.23 ms"), (0.25, "250 ms"), (1.5, "1.50 s"), (None, "–")]
)
def test_seconds(value: float | None, text: str) -> None:
    assert wording.seconds(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (3 * 2**20, "3.00 MiB"), (2**44, "16.0 TiB")]
)
def test_sizes(count: float, text: str) -> None:
    assert wording.size(count) == text
