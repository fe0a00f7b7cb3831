"""Ask a judge which of two answers is better, for all prompts; several at once, and only what it has not yet said."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any, Literal, TextIO

from pydantic import Field
from rich.console import Console

from fusionroute.config import Settings
from fusionroute.environment import versions
from fusionroute.errors import FusionRouteError, SettingsError
from fusionroute.evaluation.judge.answers import Item, digest, match_answers
from fusionroute.evaluation.judge.cost import Cost, estimate_cost
from fusionroute.evaluation.judge.protocol import INSTRUCTION, QUESTION, messages, read_verdict
from fusionroute.evaluation.judge.tally import Tally, Ties, tally
from fusionroute.evaluation.judge.verdicts import VERDICTS_FILE, Verdict, VerdictFolder
from fusionroute.models.endpoint import ChatEndpoint
from fusionroute.models.prompt import as_text
from fusionroute.output import write_json
from fusionroute.terminal import RichProgress

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
    progress: RichProgress | None = None,
) -> Tally:
    """How often a judge prefers the answers of ``answers_a`` (spec, section 10.3).

    ``output`` gets ``verdicts.jsonl``, a line as soon as there is a verdict, and at the end ``win_rate.json``. Called
    again with the same files and settings it asks only for what is missing (``ties`` may change: that asks nothing).

    Args:
        answers_a, answers_b: JSON lines; see `match_answers`.
        at_once: requests under way at a time.
        timeout, pause: of the `ChatEndpoint`.
        confirm: told what is still to be paid for before the first request, if there is anything; raises to stop it.

    Raises:
        DataError: the answers do not belong together; see `match_answers`.
        OutputExistsError: ``output`` holds something else, or verdicts of other answers or settings.
        SettingsError: a bad address, or the endpoint refuses.
        FusionRouteError: the endpoint kept failing. What it said before is kept.
    """
    if at_once < 1:
        raise SettingsError(f"at_once must be at least 1; got {at_once}")
    progress = progress or RichProgress(Console(file=StringIO()))
    items = match_answers(answers_a, answers_b)
    endpoint = ChatEndpoint(judge_url, settings.judge_model, timeout=timeout, pause=pause)
    folder = VerdictFolder(output, _identity(items, settings))
    places = [[(item, a_first) for a_first in _orders(item, settings)] for item in items]
    wanted = [place for each in places for place in each if (place[0].key, place[1]) not in folder.verdicts]
    if wanted:
        confirm(estimate_cost(_conversation(*place) for place in wanted))
        with folder.begin() as file:
            _ask(endpoint, wanted, folder, file, at_once, progress)
    result = tally([[folder.verdicts[item.key, a_first] for item, a_first in each] for each in places], settings.ties)
    write_json(Path(output) / RESULT_FILE, _record(result, answers_a, answers_b, settings, len(items)))
    return result


def _identity(items: Sequence[Item], settings: JudgeSettings) -> dict[str, Any]:
    """All that verdicts depend on. Not the address: the same judge may have moved."""
    return {
        **settings.model_dump(exclude={"ties"}),
        "answers": digest(sorted(item.key for item in items)),
        "protocol": digest([INSTRUCTION, QUESTION]),
    }


def _orders(item: Item, settings: JudgeSettings) -> tuple[bool, ...]:
    """Whether the answer of a stands first, for each time the judge is asked."""
    if settings.order == "random":
        return (int(digest([settings.seed, item.prompt]), 16) % 2 == 0,)
    return (True, False) if settings.order == "both" else (True,)


def _conversation(item: Item, a_first: bool) -> list[dict[str, str]]:
    first, second = (item.a, item.b) if a_first else (item.b, item.a)
    return messages(item.prompt, first, second)


def _ask(
    endpoint: ChatEndpoint,
    wanted: Sequence[tuple[Item, bool]],
    folder: VerdictFolder,
    file: TextIO,
    at_once: int,
    progress: RichProgress,
) -> None:
    """Keep every verdict as it comes, and on failure those that are under way: they are paid for."""
    known = len(folder.verdicts)
    progress.start(f"judging by {endpoint.model}", len(wanted))
    with ThreadPoolExecutor(at_once) as pool:
        asked = [pool.submit(_judge, endpoint, item, a_first) for item, a_first in wanted]
        try:
            for future in as_completed(asked):
                folder.append(file, future.result())
                progress.advance(1)
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            _keep(asked, folder, file)
            if isinstance(error, FusionRouteError):
                done, total = len(folder.verdicts), known + len(wanted)
                raise type(error)(f"{error}; {done} of {total} verdicts are kept: the same command goes on") from error
            raise
    progress.finish(f"{len(wanted)} verdicts, {known} were there before" if known else f"{len(wanted)} verdicts")


def _keep(asked: Sequence[Future[Verdict]], folder: VerdictFolder, file: TextIO) -> None:
    for future in asked:
        if future.cancelled() or future.exception() is not None:
            continue
        verdict = future.result()
        if verdict.place not in folder.verdicts:
            folder.append(file, verdict)


def _judge(endpoint: ChatEndpoint, item: Item, a_first: bool) -> Verdict:
    try:
        reply = endpoint.ask(_conversation(item, a_first))
    except SettingsError as error:  # may be one prompt's fault, if it is too long for the judge
        raise SettingsError(f"{error} (asked about {as_text(item.prompt)[:60]!r})") from error
    reading = read_verdict(reply.text)
    first, second = reading.scores or (None, None)
    return Verdict(
        item=item.key,
        a_first=a_first,
        score_a=first if a_first else second,
        score_b=second if a_first else first,
        problem=reading.problem,
        reply=reply.text,
        model=reply.model,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        prompt=item.prompt,
    )


def _record(
    result: Tally, answers_a: str | Path, answers_b: str | Path, settings: JudgeSettings, items: int
) -> dict[str, Any]:
    return {
        "a": Path(answers_a).name,
        "b": Path(answers_b).name,
        **asdict(result),
        "items": items,
        "settings": settings.model_dump(),
        "protocol": digest([INSTRUCTION, QUESTION]),
        "verdicts": VERDICTS_FILE,
        "versions": versions(),
    }
