"""Running accounts: every line follows from the one before, numbers stay in bounds, prompts hold no result."""

import random
import re

import pytest

from fusionroute.zoo.tasks import check, examples, ledger

SUM = re.compile(r"and (?:(\d+) (plus|minus) (\d+)|twice (\d+)) (?:makes|leaves) (\d+) (\w+)\.$")
ADDED = re.compile(r"^\w (\w+) .*?(?:that is )?(\d+), and")


def drawn(count: int = 200, **options) -> list:
    rng = random.Random(5)
    return [ledger.draw(rng, 1, 10, **options) for _ in range(count)]


def test_every_line_follows_from_the_one_before():
    for part in drawn():
        start, *steps, final = part.lines
        total = int(re.search(r"\d+", start).group())
        for line in steps:
            left, sign, right, doubled, result, thing = SUM.search(line).groups()
            assert int(left or doubled) == total
            total = {"plus": total + int(right or 0), "minus": total - int(right or 0), None: 2 * total}[sign]
            assert int(result) == total
            assert ledger.SMALLEST <= total <= ledger.LARGEST
            assert thing in start
        assert final == f"#### {total}"
        assert part.requirement == {"number": total}


def test_as_many_as_looks_up_what_somebody_before_has_added_or_taken():
    looked_up = 0
    for part in drawn():
        numbers: dict[str, str] = {}
        for line in part.lines[1:-1]:
            if "as many as" in line:
                model, number = re.search(r"as many as (\w+), that is (\d+)", line).groups()
                assert numbers[model] == number
                looked_up += 1
            if added := ADDED.match(line):
                numbers[added.group(1)] = added.group(2)
    assert looked_up > 50


def test_a_prompt_tells_the_steps_and_no_results():
    for part in drawn(50):
        told, worked = part.request.split("\n"), part.lines
        assert told[0] == worked[0]
        assert told[-1].startswith("How many ")
        for sentence, line in zip(told[1:-1], worked[1:-1], strict=True):
            assert line.startswith(sentence.removesuffix("."))


def test_kinds_are_drawn_by_weight():
    only = drawn(weights={"gain": 1.0, "loss": 1.0, "same": 0.0, "double": 0.0})
    assert not any("twice" in line or "as many" in line for part in only for line in part.lines)
    assert sum("twice" in line for part in drawn() for line in part.lines) > 20


@pytest.mark.parametrize(("task", "steps"), [("ledger", (6, 10)), ("short_ledger", (2, 3))])
def test_tasks_differ_in_steps_alone(task: str, steps: tuple[int, int]):
    lengths = {len(example.answer.split("\n")) - 2 for example in examples(task, "test", 100)}
    assert (min(lengths), max(lengths)) == steps


def test_one_slip_spoils_the_answer():
    (example,) = examples("ledger", "test", 1)
    final = example.requirement["number"]
    wrong = example.answer.replace(f"#### {final}", f"#### {final + 1}")
    assert check([example, example], [wrong, example.answer]) == [False, True]
