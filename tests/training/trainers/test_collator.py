import pytest
import torch

from fusionroute.training.trainers.collator import Collator

LONG = {"input_ids": [5, 6, 7, 8], "prompt_length": 2, "row": 3, "nll.a": [0.1, 0.2], "nll.b": [0.3, 0.4]}
LONG |= {"top_choice.a": [1, 2], "top_choice.b": [1, 3]}
SHORT = {"input_ids": [9, 10], "prompt_length": 1, "row": 8, "nll.a": [0.5], "nll.b": [0.6]}
SHORT |= {"top_choice.a": [4], "top_choice.b": [5]}


def test_a_batch_has_each_number_where_its_token_is_predicted() -> None:
    batch = Collator(["a", "b"])([LONG, SHORT])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 7, 8, -100], [10, -100, -100, -100]]
    assert batch["informative"].tolist() == [[False, False, True, False], [True, False, False, False]]
    expected = [[[0, 0], [0.1, 0.3], [0.2, 0.4], [0, 0]], [[0.5, 0.6], [0, 0], [0, 0], [0, 0]]]
    torch.testing.assert_close(batch["expert_nll"], torch.tensor(expected))
    assert batch["row"].tolist() == [3, 8]
    assert batch["answer"].tolist() == [-1, -1]
    assert batch["reference"].tolist() == [0, 0]


def test_experts_stand_in_the_order_that_was_asked_for() -> None:
    torch.testing.assert_close(Collator(["b", "a"])([SHORT])["expert_nll"][0, 0], torch.tensor([0.6, 0.5]))


def test_pairs_and_examples_share_a_batch() -> None:
    chosen, rejected = LONG | {"nll.router": [1.0, 2.5]}, SHORT | {"nll.router": [4.0]}
    batch = Collator(["a", "b"])([(chosen, rejected), SHORT, (rejected, chosen)])
    assert batch["answer"].tolist() == [0, 1, -1, 2, 3]
    torch.testing.assert_close(batch["reference"], torch.tensor([-3.5, -4.0, 0.0, -4.0, -3.5]))
    assert batch["row"].tolist() == [3, 8, 8, 8, 3]
    assert batch["input_ids"].shape == (5, 4)


def test_no_experts_are_one_that_is_never_wrong() -> None:
    batch = Collator(())([{"input_ids": [9, 10, 11], "prompt_length": 1}])
    assert batch["expert_nll"].shape == (1, 3, 1)
    assert not batch["expert_nll"].any()
    assert not batch["informative"].any()
    assert batch["row"].tolist() == [0]


def test_a_pair_needs_its_reference() -> None:
    with pytest.raises(KeyError, match=r"nll\.router"):
        Collator(["a", "b"])([(LONG, SHORT)])
