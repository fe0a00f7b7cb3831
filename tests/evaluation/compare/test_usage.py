"""Who wrote how much, and where, against counts by hand."""

from typing import Any

import pytest

from fusionroute.evaluation.compare.usage import usage


def cell(task: str, *answers: list[str] | None) -> dict[str, Any]:
    return {"task": task, "examples": [{"tokens": None if a is None else {"expert": a}} for a in answers]}


def test_shares_count_tokens() -> None:
    found = usage([cell("sums", ["a", "a", "b"], ["a"]), cell("words", ["b", "b"])])
    assert found is not None
    assert found["experts"] == ["a", "b"]
    assert found["by_task"] == {"sums": {"a": 0.75, "b": 0.25}, "words": {"a": 0.0, "b": 1.0}}


def test_positions_count_answers_alike() -> None:
    """Of four tokens the second covers tenths 2.5 to 5: half of the third tenth, all of the fourth and fifth."""
    found = usage([cell("sums", ["a", "b", "a", "a"], ["a"])])
    assert found is not None
    assert found["by_position"]["sums"]["b"] == pytest.approx([0, 0, 0.25, 0.5, 0.5, 0, 0, 0, 0, 0])
    total = [sum(tenth) for tenth in zip(*found["by_position"]["sums"].values(), strict=True)]
    assert total == pytest.approx([1.0] * 10)


def test_long_answers_fill_every_tenth() -> None:
    found = usage([cell("sums", ["a"] * 7 + ["b"] * 30)])
    assert found is not None
    total = [sum(tenth) for tenth in zip(*found["by_position"]["sums"].values(), strict=True)]
    assert total == pytest.approx([1.0] * 10)


def test_one_writer_is_told_and_choices_are_not_written() -> None:
    one = usage([cell("sums", ["a", "a"], ["a"])])
    assert one is not None
    assert one["by_task"] == {"sums": {"a": 1.0}}
    assert usage([cell("choices", None, None)]) is None
    mixed = usage([cell("choices", None), cell("sums", ["a", "b"], [])])
    assert mixed is not None
    assert list(mixed["by_task"]) == ["sums"]
