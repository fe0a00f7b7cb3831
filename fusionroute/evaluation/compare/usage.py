"""Which model wrote how much, and where in the answer."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TENTHS = 10


def usage(cells: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Shares of the tokens by expert, for each task and each tenth of the answer; None if nothing was written.

    Args:
        cells: of one method, all tasks and seeds.
    """
    tasks: dict[str, list[Sequence[str]]] = {}
    for cell in cells:
        writers = [each["tokens"]["expert"] for each in cell["examples"] if each["tokens"]]
        tasks.setdefault(cell["task"], []).extend(writer for writer in writers if writer)
    experts = _in_order(tasks.values())
    if not experts:
        return None
    tasks = {task: answers for task, answers in tasks.items() if answers}
    return {
        "experts": experts,
        "by_task": {task: shares(answers, experts) for task, answers in tasks.items()},
        "by_position": {task: positions(answers, experts) for task, answers in tasks.items()},
    }


def _in_order(tasks: Iterable[list[Sequence[str]]]) -> list[str]:
    """Experts by how much they wrote, so that the order does not hang on who wrote first."""
    counts = Counter(expert for answers in tasks for answer in answers for expert in answer)
    return [expert for expert, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def shares(answers: Sequence[Sequence[str]], experts: Sequence[str]) -> dict[str, float]:
    """Each expert's share of all tokens; answers name the writer of each token."""
    counts = Counter(expert for answer in answers for expert in answer)
    total = sum(counts.values())
    return {expert: counts[expert] / total for expert in experts}


def positions(answers: Sequence[Sequence[str]], experts: Sequence[str]) -> dict[str, list[float]]:
    """Each expert's share of the tokens in each tenth of the answer, every answer counting the same.

    A token spreads over the tenths that it covers, so that short answers fill all ten as well.
    """
    sums = {expert: [0.0] * TENTHS for expert in experts}
    for answer in answers:
        for at, expert in enumerate(answer):
            for tenth, share in _covered(at / len(answer), (at + 1) / len(answer)):
                sums[expert][tenth] += share
    return {expert: [value / len(answers) for value in tenths] for expert, tenths in sums.items()}


def _covered(begin: float, end: float) -> Iterable[tuple[int, float]]:
    """Tenths that ``[begin, end)`` of an answer touches, and how much of each it fills."""
    for tenth in range(int(begin * TENTHS), TENTHS):
        low, high = tenth / TENTHS, (tenth + 1) / TENTHS
        if low >= end:
            return
        share = (min(end, high) - max(begin, low)) * TENTHS
        if share > 1e-9:
            yield tenth, share
