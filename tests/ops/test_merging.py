"""Against numbers worked by hand, against numpy, and against peft's own functions."""

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor

from fusionroute.errors import SettingsError
from fusionroute.ops.merging import MergeSettings, _seed, merge

BASE = torch.tensor([[1.0, -2.0, 0.0], [4.0, 0.5, -1.0]])


def random_tensors(count: int = 3, shape: tuple[int, ...] = (37, 11), seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base, [base + 0.3 * torch.randn(shape, generator=generator) for _ in range(count)]


def settings(method: str, **options: object) -> MergeSettings:
    return MergeSettings.parse({"method": method, **options})


def test_task_arithmetic_by_hand() -> None:
    experts = [BASE + 1, BASE + torch.tensor([[0.0, 2.0, -4.0], [0.0, 0.0, 1.0]])]
    expected = BASE + 0.5 * torch.tensor([[1.0, 3.0, -3.0], [1.0, 1.0, 2.0]])
    torch.testing.assert_close(merge(BASE, experts, settings("task_arithmetic", scale=0.5)), expected)


def test_ties_by_hand() -> None:
    """Half of six entries is kept of each; the sum's sign decides; only those of that sign are averaged."""
    experts = [
        BASE + torch.tensor([[5.0, 1.0, -4.0], [3.0, 2.0, 0.5]]),  # keeps 5, -4, 3
        BASE + torch.tensor([[-6.0, 0.1, -2.0], [7.0, 0.2, 0.3]]),  # keeps -6, -2, 7
    ]
    #        5 - 6 < 0: -6; nothing; (-4 - 2) / 2; (3 + 7) / 2
    expected = BASE + 2 * torch.tensor([[-6.0, 0.0, -3.0], [5.0, 0.0, 0.0]])
    torch.testing.assert_close(merge(BASE, experts, settings("ties", density=0.5, scale=2)), expected)


def numpy_ties(base: np.ndarray, experts: list[np.ndarray], density: float, scale: float) -> np.ndarray:
    """Entry by entry, in float64."""
    vectors = []
    for expert in experts:
        vector = (expert - base).ravel()
        for at in np.argsort(-np.abs(vector))[int(density * vector.size) :]:
            vector[at] = 0.0
        vectors.append(vector)
    merged = np.zeros(base.size)
    for at in range(base.size):
        entries = [vector[at] for vector in vectors]
        agreeing = [entry for entry in entries if entry * sum(entries) > 0]
        merged[at] = np.mean(agreeing) if agreeing else 0.0
    return base + scale * merged.reshape(base.shape)


@pytest.mark.parametrize(("density", "scale"), [(0.2, 1.0), (0.5, 0.7), (1.0, 1.0), (0.001, 1.0)])
def test_ties_in_numpy(density: float, scale: float) -> None:
    base, experts = random_tensors()
    expected = numpy_ties(base.double().numpy(), [each.double().numpy() for each in experts], density, scale)
    merged = merge(base, experts, settings("ties", density=density, scale=scale))
    torch.testing.assert_close(merged.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


def test_peft_gives_the_same() -> None:
    base, experts = random_tensors()
    vectors, scales = [each - base for each in experts], torch.full((3,), 0.6)
    for method, expected in {
        "task_arithmetic": merge_utils.task_arithmetic(vectors, scales),
        "ties": merge_utils.ties(vectors, scales, 0.2),
    }.items():
        torch.testing.assert_close(merge(base, experts, settings(method, scale=0.6)), base + expected)


def test_dare_drops_and_rescales() -> None:
    """Each entry of the change is gone or ten times as large, and one in ten is there."""
    base, (expert,) = random_tensors(1, (200, 100))
    change = merge(base, [expert], settings("dare")) - base
    kept = change.abs() > 1e-9
    torch.testing.assert_close(change[kept], 10 * (expert - base)[kept], rtol=1e-3, atol=1e-4)
    assert 0.09 < kept.float().mean() < 0.11  # 4.7 standard deviations


def test_dare_is_pefts_with_the_same_draws() -> None:
    base, experts = random_tensors(2)
    merged = merge(base, experts, settings("dare", drop_rate=0.4, scale=0.5, seed=7), name="a.weight")
    expected = base.clone()
    with torch.random.fork_rng():
        for place, expert in enumerate(experts):
            torch.manual_seed(_seed(f"7 {place} a.weight"))
            expected += merge_utils.dare_linear([expert - base], torch.tensor([0.5]), 0.6)
    torch.testing.assert_close(merged, expected)


def test_dares_draws_depend_on_seed_name_and_place_alone() -> None:
    base, experts = random_tensors(2)

    def drawn(seed: int = 0, name: str = "a") -> Tensor:
        return merge(base, experts, settings("dare", seed=seed), name=name)

    first = drawn()
    torch.rand(5)
    assert torch.equal(drawn(), first)
    assert not torch.equal(drawn(seed=1), first)
    assert not torch.equal(drawn(name="b"), first)
    twins = merge(torch.zeros(1000), [torch.ones(1000)] * 2, settings("dare", drop_rate=0.5))
    assert set(twins.tolist()) == {0.0, 2.0, 4.0}  # drawn apart, although they are equal


def test_the_global_generator_is_left_alone() -> None:
    base, experts = random_tensors()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    merge(base, experts, settings("dare"))
    assert torch.equal(torch.rand(4), expected)


def test_dropping_nothing_is_task_arithmetic() -> None:
    base, experts = random_tensors()
    assert torch.equal(
        merge(base, experts, settings("dare", drop_rate=0)), merge(base, experts, settings("task_arithmetic"))
    )


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare"])
def test_scale_zero_is_the_base_bit_for_bit(method: str) -> None:
    base, experts = random_tensors()
    base[0, 0], base[0, 1] = -0.0, 1e-40
    merged = merge(base, experts, settings(method, scale=0))
    assert torch.equal(merged.view(torch.int32), base.view(torch.int32))
    assert merged.data_ptr() != base.data_ptr()


def test_one_expert_is_that_expert_and_the_base_among_itself_is_itself() -> None:
    base, (expert,) = random_tensors(1)
    for whole in (settings("task_arithmetic"), settings("ties", density=1), settings("dare", drop_rate=0)):
        torch.testing.assert_close(merge(base, [expert], whole), expert, rtol=1e-6, atol=1e-6)
    for method in ("task_arithmetic", "ties", "dare"):
        assert torch.equal(merge(base, [base, base], settings(method)), base)


def test_half_precision_is_summed_in_float32_and_rounded_once() -> None:
    base, experts = random_tensors()
    base, experts = base.bfloat16(), [each.bfloat16() for each in experts]
    exact = base.double() + sum(each.double() - base.double() for each in experts)
    merged = merge(base, experts, settings("task_arithmetic"))
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, exact.bfloat16())
    assert merge(BASE.double(), [BASE.double() + 1e-12], settings("task_arithmetic"))[0, 0] > 1  # no less either


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tise"}, "method: unknown option 'tise'; did you mean 'ties'"),
        ({"method": "ties", "drop_rate": 0.5}, "drop_rate is an option of dare and does nothing in ties"),
        ({"method": "task_arithmetic", "seed": 1}, "seed is an option of dare"),
        ({"method": "dare", "density": 0.5}, "density is an option of ties"),
        ({"method": "dare", "drop_rate": 1.0}, "drop_rate: .*less than 1"),
        ({"method": "ties", "density": 0}, "density: .*greater than 0"),
        ({"method": "ties", "densty": 0.5}, "did you mean 'density'"),
        ({"scale": 1.0}, "method: Field required"),
    ],
)
def test_options_that_do_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        MergeSettings.parse(options)


def test_the_defaults_of_the_papers() -> None:
    assert settings("dare").model_dump() == {
        "method": "dare", "scale": 1.0, "density": None, "drop_rate": 0.9, "seed": 0,
    }  # fmt: skip
    assert (settings("ties").density, settings("ties").drop_rate) == (0.2, None)
    assert MergeSettings.parse(settings("ties").model_dump()) == settings("ties")
