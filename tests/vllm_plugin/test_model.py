"""The plugin's own arithmetic, without an engine."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fusionroute.ops.fusion import fuse
from fusionroute.vllm_plugin.model import added, side_by_side


def test_each_piece_is_copied_before_the_next_is_made() -> None:
    """As recorded graphs do, all pieces are written into one memory."""
    memory = torch.empty(12)

    def pieces() -> Iterator[Tensor]:
        for at, width in enumerate((3, 2, 1)):
            yield memory[: 2 * width].view(2, width).fill_(at)

    assert side_by_side(pieces(), 6).tolist() == [[0, 0, 0, 1, 1, 2]] * 2


def test_added_logits_are_the_distribution_of_the_paper() -> None:
    torch.manual_seed(0)
    router, first, second = torch.randn(5, 11) * 4, torch.randn(2, 11) * 4, torch.randn(3, 11) * 4
    rows = torch.tensor([3, 0]), torch.tensor([1, 2, 4])
    expert = torch.empty(5, 11)
    expert[rows[0]], expert[rows[1]] = first, second
    total = added(added(router.clone(), first, rows[0], 5), second, rows[1], 5)
    torch.testing.assert_close(total.log_softmax(-1), fuse(router, expert))
    alone = added(added(None, first, rows[0], 5), second, rows[1], 5)
    assert torch.equal(alone, expert)
    torch.testing.assert_close(added(router.clone(), expert, None, 5).log_softmax(-1), fuse(router, expert))
    assert added(None, expert, None, 5) is expert
