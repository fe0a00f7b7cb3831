"""Asking a judge, several questions at once, and keeping every verdict as it comes: it is paid for."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TextIO

from fusionroute.errors import FusionRouteError, SettingsError
from fusionroute.evaluation.judge.answers import Item
from fusionroute.evaluation.judge.protocol import messages, read_verdict
from fusionroute.evaluation.judge.verdicts import Verdict, VerdictFolder
from fusionroute.models.endpoint import ChatEndpoint, RequestRefusedError
from fusionroute.models.prompt import as_text
from fusionroute.progress import Progress

Place = tuple[Item, bool]  # an item, and whether the answer of a stands first
HOPELESS = 3  # so many refusals at the beginning, and the judge is thought to refuse everything


class Asking:
    """One run of questions to a judge.

    A refusal of one item is a verdict too ("refused"), but only once there is another: if the first three items of a
    run are refused, or all there ever were, it is the endpoint's settings that are wrong, and nothing is kept of them.

    Args:
        stop: what the endpoint waits by.
        folder, file: where verdicts are kept.
    """

    def __init__(self, endpoint: ChatEndpoint, stop: threading.Event, folder: VerdictFolder, file: TextIO):
        self.endpoint = endpoint
        self.stop = stop
        self.folder = folder
        self.file = file
        self.refused: dict[int, tuple[Verdict, RequestRefusedError]] = {}  # not yet kept, by the place in the queue
        self.has_verdict = False

    def run(self, wanted: Sequence[Place], at_once: int, progress: Progress) -> None:
        """Ask for all of ``wanted``.

        Raises:
            SettingsError: the endpoint refuses everything.
            FusionRouteError: it kept failing on one item.
        """
        with ThreadPoolExecutor(at_once) as pool:
            asked: dict[Future[Verdict], int] = {}
            with self._in_hand(pool, asked):
                for future in self._asked_in_turn(pool, asked, wanted, at_once):
                    self._take(future, asked[future], wanted)
                    progress.advance(1)
                if self.refused and not any(each.problem != "refused" for each in self.folder.verdicts.values()):
                    raise next(error for _, error in self.refused.values())
                self._keep_refused()

    def _asked_in_turn(
        self, pool: ThreadPoolExecutor, asked: dict[Future[Verdict], int], wanted: Sequence[Place], at_once: int
    ) -> Iterator[Future[Verdict]]:
        """Answers as they come. The next question is asked when one has been taken, lest a judge that refuses
        everything is asked on meanwhile.
        """
        pending = set[Future[Verdict]]()
        while len(asked) < len(wanted) or pending:
            for at in range(len(asked), min(len(wanted), len(asked) + at_once - len(pending))):
                future = pool.submit(self._judge, *wanted[at])
                asked[future] = at
                pending.add(future)
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from done

    def _take(self, future: Future[Verdict], at: int, wanted: Sequence[Place]) -> None:
        try:
            verdict = future.result()
        except RequestRefusedError as error:
            self.refused[at] = _refusal(wanted[at], error), error
            if not self.has_verdict and self.refused.keys() >= set(range(HOPELESS)):
                raise SettingsError(f"the first {HOPELESS} questions are all refused: {error}") from error
        else:
            self.has_verdict = True
            self.folder.append(self.file, verdict)
        if self.has_verdict:
            self._keep_refused()

    def _keep_refused(self) -> None:
        for verdict, _ in self.refused.values():
            self.folder.append(self.file, verdict)
        self.refused.clear()

    @contextmanager
    def _in_hand(self, pool: ThreadPoolExecutor, asked: dict[Future[Verdict], int]) -> Iterator[None]:
        """Whatever happens: begin nothing more, and keep what is under way and comes at the first attempt."""
        try:
            yield
        except BaseException:
            self.stop.set()
            pool.shutdown(cancel_futures=True)
            for future in asked:
                if not future.cancelled() and future.exception() is None:
                    self._keep_late(future.result())
            if self.has_verdict:
                self._keep_refused()
            raise

    def _keep_late(self, verdict: Verdict) -> None:
        self.has_verdict = True
        if verdict.place not in self.folder.verdicts:
            self.folder.append(self.file, verdict)

    def _judge(self, item: Item, a_first: bool) -> Verdict:
        try:
            reply = self.endpoint.ask(conversation(item, a_first))
        except SettingsError as error:  # may be one prompt's fault, if it is too long for the judge
            raise type(error)(f"{error} (asked about {as_text(item.prompt)[:60]!r})") from error
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


def conversation(item: Item, a_first: bool) -> list[dict[str, str]]:
    """What the judge is told of an item's answers, in one of both orders."""
    first, second = (item.a, item.b) if a_first else (item.b, item.a)
    return messages(item.prompt, first, second)


def _refusal(place: Place, error: FusionRouteError) -> Verdict:
    item, a_first = place
    return Verdict(item.key, a_first, None, None, "refused", str(error), "", None, None, item.prompt)
