"""OpenAI's penalties, numbers written out by hand."""

import torch

from fusionroute.ops.penalties import penalise
from fusionroute.ops.sampling import NEVER

LOGITS = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])


def test_presence_counts_once_and_frequency_every_time() -> None:
    # row 0: token 0 stands once (1 - .5 - .25), token 2 twice (3 - .5 - 2 x .25); row 1: token 1 is encouraged (2 + 1)
    found = penalise(LOGITS, [[2, 0, 2], [1]], [0.5, -1.0], [0.25, 0.0])
    torch.testing.assert_close(found, torch.tensor([[0.25, 2.0, 2.0], [1.0, 3.0, 3.0]]))
    assert LOGITS.tolist() == [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], "log-probabilities are of what came in"


def test_frequency_alone_grows_with_every_time() -> None:
    found = penalise(LOGITS, [[0] * 7, []], [0.0, 0.0], [2.0, 2.0])
    torch.testing.assert_close(found, torch.tensor([[-13.0, 2.0, 3.0], [1.0, 2.0, 3.0]]))


def test_where_nothing_is_taken_off_the_tensor_comes_back() -> None:
    assert penalise(LOGITS, [[0, 1], [2]], [0.0, 0.0], [0.0, 0.0]) is LOGITS
    assert penalise(LOGITS, [[], []], [1.0, 1.0], [1.0, 1.0]) is LOGITS


def test_an_excluded_token_stays_excluded_and_strides_do_not_matter() -> None:
    strided = torch.tensor([[1.0, 5.0], [NEVER, 6.0], [3.0, 7.0]]).T
    found = penalise(strided, [[1, 2], [0]], [-2.0, 2.0], [0.0, 0.0])
    assert found.tolist() == [[1.0, NEVER, 5.0], [3.0, 6.0, 7.0]]
