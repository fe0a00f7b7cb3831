import pytest
import torch

from fusionroute.ops.fusion import fuse


def test_fusion_is_the_normalised_product_of_two_distributions() -> None:
    router, expert = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.6, 0.3]])
    product = torch.tensor([[0.05, 0.18, 0.06]])
    torch.testing.assert_close(fuse(router.log(), expert.log()).exp(), product / product.sum())
    torch.testing.assert_close(fuse(router.log(), expert.log(), normalise=False).exp(), product)


@pytest.mark.parametrize("normalise", [True, False])
def test_raw_logits_and_log_probabilities_give_the_same(normalise: bool) -> None:
    router, expert = torch.randn(2, 5, 11)
    raw = fuse(router + 3, expert - 2, normalise=normalise)
    torch.testing.assert_close(raw, fuse(router.log_softmax(-1), expert.log_softmax(-1), normalise=normalise))


def test_a_uniform_partner_changes_nothing_and_half_precision_is_summed_in_float32() -> None:
    expert = torch.randn(3, 7).bfloat16()
    fused = fuse(torch.zeros(3, 7, dtype=torch.bfloat16), expert)
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, expert.float().log_softmax(-1))


def test_what_the_expert_forbids_stays_forbidden() -> None:
    fused = fuse(torch.tensor([5.0, 0.0, 0.0]), torch.tensor([float("-inf"), 0.0, 1.0]))
    assert fused[0] == float("-inf")
    assert not fused.isnan().any()
