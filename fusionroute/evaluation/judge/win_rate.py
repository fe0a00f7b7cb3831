"""Ask a judge which of two answers is better, for all prompts; several at once, and only what it has not yet said."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fusionroute.config import Settings
from fusionroute.environment import versions
from fusionroute.errors import FusionRouteError, SettingsError
from fusionroute.evaluation.judge.answers import Item, digest, match_answers
from fusionroute.evaluation.judge.asking import Asking, Place, conversation
from fusionroute.evaluation.judge.cost import Cost, estimate_cost
from fusionroute.evaluation.judge.origin import read_origin
from fusionroute.evaluation.judge.protocol import INSTRUCTION, QUESTION
from fusionroute.evaluation.judge.tally import Tally, Ties, tally
from fusionroute.evaluation.judge.verdicts import VERDICTS_FILE, VerdictFolder
from fusionroute.models.endpoint import ChatEndpoint
from fusionroute.output import write_json
from fusionroute.progress import Progress, Silent

RESULT_FILE = "win_rate.json"
AT_ONCE = 8
Confirm = Callable[[Cost], None]


class JudgeSettings(Settings):
    """How two answers are compared.

    Attributes:
        judge_model: as the endpoint calls it.
        order: which answer the judge reads first: ``"random"``, by a coin per prompt that depends on the seed and the
            prompt alone; ``"both"``: it is asked twice, once in each order, and scores are summed; ``"first"``: that of
            ``a``, always (a judge that prefers what stands first then favours ``a``).
        ties: equal scores, which the judge is told not to give, count in n as no win (``"forbid"``, so a win rate is
            wins / n as in the paper) or as half a win (``"half"``).
        seed: of the coins.
    """

    judge_model: str = Field(min_length=1)
    order: Literal["first", "random", "both"] = "random"
    ties: Ties = "forbid"
    seed: int = Field(0, ge=0)


def win_rate(
    answers_a: str | Path,
    answers_b: str | Path,
    settings: JudgeSettings,
    output: str | Path,
    *,
    judge_url: str,
    at_once: int = AT_ONCE,
    timeout: float | None = None,
    pause: float = 1.0,
    confirm: Confirm = lambda cost: None,
    progress: Progress | None = None,
) -> Tally:
    """How often a judge prefers the answers of ``answers_a`` (spec, section 10.3).

    ``output`` gets ``verdicts.jsonl``, a line as soon as there is a verdict, and at the end ``win_rate.json``. Called
    again with the same settings it asks only for what is missing (``ties`` may change: that asks nothing). A verdict is
    kept for a prompt and both its answers: where the files have changed, what is no longer in them is left alone and
    left out. What the judge refuses while it answers others is counted and not asked again; remove its line from
    ``verdicts.jsonl`` to do so.

    Args:
        answers_a, answers_b: JSON lines or cells of a comparison; see `match_answers`.
        at_once: requests under way at a time.
        timeout, pause: of the `ChatEndpoint`.
        confirm: told what is still to be paid for before the first request, if there is anything; raises to stop it.

    Raises:
        DataError: the answers do not belong together; see `match_answers`.
        OutputExistsError: ``output`` holds something else, or verdicts of other settings.
        SettingsError: a bad address, or the endpoint refuses everything.
        FusionRouteError: the endpoint kept failing. What it said before is kept.
    """
    if at_once < 1:
        raise SettingsError(f"at_once must be at least 1; got {at_once}")
    progress = progress or Silent()
    items = match_answers(answers_a, answers_b)
    stop = threading.Event()
    endpoint = ChatEndpoint(judge_url, settings.judge_model, timeout=timeout, pause=pause, stop=stop)
    folder = VerdictFolder(output, _identity(settings))
    places = [[(item, a_first) for a_first in _orders(item, settings)] for item in items]
    distinct = {(item.key, a_first): (item, a_first) for each in places for item, a_first in each}
    wanted = [place for key, place in distinct.items() if key not in folder.verdicts]
    if wanted:
        confirm(estimate_cost(conversation(*place) for place in wanted))
        with folder.begin() as file:
            _ask(Asking(endpoint, stop, folder, file), wanted, len(distinct) - len(wanted), at_once, progress)
    result = tally([[folder.verdicts[item.key, a_first] for item, a_first in each] for each in places], settings.ties)
    write_json(Path(output) / RESULT_FILE, _record(result, answers_a, answers_b, settings, judge_url, len(items)))
    return result


def _identity(settings: JudgeSettings) -> dict[str, Any]:
    """All that verdicts depend on beside their items. Not the address: the same judge may have moved."""
    return {**settings.model_dump(exclude={"ties"}), "protocol": digest([INSTRUCTION, QUESTION])}


def _orders(item: Item, settings: JudgeSettings) -> tuple[bool, ...]:
    """Whether the answer of a stands first, for each time the judge is asked."""
    if settings.order == "random":
        return (int(digest([settings.seed, item.prompt]), 16) % 2 == 0,)
    return (True, False) if settings.order == "both" else (True,)


def _ask(asking: Asking, wanted: Sequence[Place], known: int, at_once: int, progress: Progress) -> None:
    progress.start(f"judging by {asking.endpoint.model}", len(wanted))
    try:
        asking.run(wanted, at_once, progress)
    except FusionRouteError as error:
        done = known + sum((item.key, a_first) in asking.folder.verdicts for item, a_first in wanted)
        total = known + len(wanted)
        raise type(error)(f"{error}; {done} of {total} verdicts are kept: the same command goes on") from error
    progress.finish(f"{len(wanted)} verdicts, {known} were there before" if known else f"{len(wanted)} verdicts")


def _record(
    result: Tally,
    answers_a: str | Path,
    answers_b: str | Path,
    settings: JudgeSettings,
    judge_url: str,
    items: int,
) -> dict[str, Any]:
    return {
        "a": read_origin(answers_a).record(),
        "b": read_origin(answers_b).record(),
        **asdict(result),
        "items": items,
        "settings": settings.model_dump(),
        "judge_url": judge_url,
        "protocol": digest([INSTRUCTION, QUESTION]),
        "verdicts": VERDICTS_FILE,
        "versions": versions(),
    }
