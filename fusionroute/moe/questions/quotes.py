"""Texts that stand inside others under another template: what is rare in them, five words at a time, is found there."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import log

WORDS = 5
LONG = 30  # words; shorter questions of one kind share most of theirs by chance
COMMON = 50  # a run of words in more texts than this is a template's: it leads to no candidates, though it counts


def quoted(train: Sequence[str], test: Sequence[str], least: float) -> dict[int, dict[int, float]]:
    """Which test texts of 30 words or more stand in which training texts, by a share of their weight of ``least``.

    A run of five words weighs log((N + 1) / texts that have it) with N training texts, so that templates weigh little.

    Args:
        train, test: words divided by single spaces, as `leakage.normalised` gives them.

    Returns:
        for each row in training, the rows in test that stand in it, with their shares.
    """
    theirs = [set(_runs(text)) if text.count(" ") + 1 >= LONG else set() for text in test]
    wanted = set[str]().union(*theirs)
    ours = [wanted.intersection(_runs(text)) for text in train]  # what no test text has need not be kept
    texts_with = Counter(run for runs in ours for run in runs)
    weight = {run: log((len(train) + 1) / max(texts_with[run], 1)) for run in wanted}
    rows_with = _rare_runs(theirs)
    totals = [sum(weight[run] for run in runs) for runs in theirs]
    found = defaultdict[int, dict[int, float]](dict)
    for row, runs in enumerate(ours):
        rare = [run for run in runs if texts_with[run] <= COMMON]
        for candidate in {each for run in rare for each in rows_with.get(run, ())}:
            share = sum(weight[run] for run in runs & theirs[candidate]) / totals[candidate]
            if share >= least:
                found[row][candidate] = share
    return dict(found)


def _rare_runs(texts: Sequence[set[str]]) -> dict[str, list[int]]:
    """Rows of the texts that have a run of words, where those are few."""
    rows = defaultdict[str, list[int]](list)
    for row, runs in enumerate(texts):
        for run in runs:
            rows[run].append(row)
    return {run: found for run, found in rows.items() if len(found) <= COMMON}


def _runs(text: str) -> Iterator[str]:
    words = text.split()
    return (" ".join(words[at : at + WORDS]) for at in range(len(words) - WORDS + 1))
