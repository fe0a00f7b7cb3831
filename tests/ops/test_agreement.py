import torch

from fusionroute.ops.agreement import agreement_matrix, decided_by, informative


def test_informative_positions_are_those_where_not_all_top_choices_are_equal() -> None:
    top = torch.tensor([[4, 4, 4], [4, 4, 5], [1, 2, 3], [0, 0, 0]])
    assert informative(top).tolist() == [False, True, True, False]
    assert not informative(top[:, :1]).any()


def test_agreement_matrix_by_hand() -> None:
    top = torch.tensor([[1, 1, 2], [1, 1, 1], [3, 2, 3], [0, 0, 5]])
    expected = torch.tensor([[1, 0.75, 0.5], [0.75, 1, 0.25], [0.5, 0.25, 1]])
    torch.testing.assert_close(agreement_matrix(top), expected)


def test_who_decided() -> None:
    token = torch.tensor([7, 7, 7, 7])
    router, expert = torch.tensor([7, 1, 7, 1]), torch.tensor([7, 7, 2, 3])
    assert decided_by(token, router, expert).tolist() == [0, 1, 2, 3]
