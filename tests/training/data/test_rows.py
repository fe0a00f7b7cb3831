from collections import Counter

import pytest

from fusionroute.errors import DataError
from fusionroute.training.data.rows import draw_rows, read_example, read_prompt

ROWS = [{"prompt": str(number), "completion": "!"} for number in range(1, 21)]


def numbers(limit: int | None, seed: int | None) -> list[int]:
    drawn = list(draw_rows(ROWS, limit, seed))
    assert all(row["prompt"] == str(number) for number, row in drawn)
    return [number for number, _ in drawn]


def test_a_limit_takes_the_first_rows_or_a_random_draw() -> None:
    assert numbers(3, None) == [1, 2, 3]
    assert numbers(None, 0) == numbers(None, None) == list(range(1, 21))
    drawn = numbers(5, 0)
    assert len(set(drawn)) == 5
    assert drawn == sorted(drawn)
    assert drawn == numbers(5, 0) != numbers(5, 1)
    assert numbers(30, 0) == list(range(1, 21))


def test_every_row_is_drawn_as_often() -> None:
    drawn = Counter(number for seed in range(2000) for number in numbers(5, seed))
    assert all(400 < drawn[number] < 600 for number in range(1, 21)), drawn  # 500 expected, standard deviation 19


def test_conversations_of_from_and_value_are_messages() -> None:
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert read_example({"conversations": turns, "source": "somewhere"}) == (prompt, "yo")
    assert read_prompt({"conversations": turns}) == prompt
    assert read_example(
        {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    ) == (
        [{"role": "user", "content": "a"}],
        "b",
    )
    with pytest.raises(DataError, match="must hold messages with 'role' and 'content' as text"):
        read_example({"conversations": [{"from": "human"}, {"from": "gpt", "value": "b"}]})
    with pytest.raises(DataError, match="messages must be a list of messages; got str"):
        read_example({"conversations": "hello"})
