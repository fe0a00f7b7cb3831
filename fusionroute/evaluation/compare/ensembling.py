"""Where models checked each other's tokens: how many were ensembled, why the others were not, and where they stand."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusionroute.engine.sequence import ENSEMBLED, VERDICTS
from fusionroute.evaluation.compare.usage import positions, shares


def ensembling(cells: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Verdicts by task, and E/T by task and by tenth of the answer; None where no token has a verdict.

    Args:
        cells: of one method, all tasks and seeds.
    """
    tasks: dict[str, list[Sequence[str]]] = {}
    for cell in cells:
        columns = [each["tokens"] for each in cell["examples"] if each["tokens"]]
        answers = [tokens["verdict"] for tokens in columns if any(tokens.get("verdict") or ())]
        if answers:
            tasks.setdefault(cell["task"], []).extend(answers)
    return {"by_task": {task: _of_task(answers) for task, answers in tasks.items()}} if tasks else None


def _of_task(answers: Sequence[Sequence[str]]) -> dict[str, Any]:
    kinds = list(dict.fromkeys([*VERDICTS, *(verdict for answer in answers for verdict in answer)]))
    found, tenths = shares(answers, kinds), positions(answers, kinds)
    return {
        "tokens": sum(map(len, answers)),
        "ensembled": sum(found[verdict] for verdict in ENSEMBLED),
        "verdicts": {verdict: share for verdict, share in found.items() if share},
        "ensembled_by_tenth": [sum(each) for each in zip(*(tenths[verdict] for verdict in ENSEMBLED), strict=True)],
    }
