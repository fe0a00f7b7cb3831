"""One thread owns all engines: requests join the running batch at the next step, and nobody else touches a model."""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic

from fusionroute.engine.engine import Engine
from fusionroute.engine.runner import Runner
from fusionroute.engine.scheduler import Scheduler
from fusionroute.engine.sequence import Sequence
from fusionroute.errors import FusionRouteError
from fusionroute.server.metrics import Metrics
from fusionroute.server.offer import Offer, Offered
from fusionroute.server.settings import ServerSettings
from fusionroute.server.ticket import SHUTDOWN, TIMEOUT, OnUpdate, Ticket, Update

logger = logging.getLogger(__name__)

FAILURE = "the model failed while it was writing; the server's log says why"
DIED = "the server's worker has died, so nobody would answer; the log says why"
MEMORY = 0.95  # of the measured rate: what a round counts after the next one


class BusyError(FusionRouteError):
    """The queue is full. ``retry_after`` is how many seconds to wait before asking again."""

    def __init__(self, retry_after: int):
        super().__init__(f"the server is busy and its queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class StoppingError(FusionRouteError):
    """The server is shutting down; it takes no new requests."""


class WorkerDiedError(FusionRouteError):
    """The worker has ended by a mistake of its own, so nobody will be answered until the server is started again."""


class Worker:
    """Steps every engine of an offer that has something to do, in turn, until it is stopped.

    Between two steps it takes new requests and lets go of cancelled ones and of those whose time is over; with nothing
    to do it sleeps. An engine whose step raises loses the sequences that it was running, and goes on with the next.
    """

    def __init__(self, offer: Offer, settings: ServerSettings, metrics: Metrics):
        self.offer = offer
        self.settings = settings
        self.metrics = metrics
        self._changed = threading.Condition()  # guards what follows, up to the blank line
        self._arrived: deque[Ticket] = deque()
        self._cancelled: list[Ticket] = []
        self._unfinished = 0  # sequences that were submitted and have not ended
        self._ends_at: float | None = None  # once it was told to stop
        self._has_died = False

        self._open: dict[Ticket, None] = {}  # in order of arrival; of the worker's thread alone, as is what follows
        self._tokens = self._seconds = 0.0  # what was written of late, and in how long
        self._places = offer.scheduler.max_batch  # how many could run after the last step
        self._thread = threading.Thread(target=self._run, name="fusionroute-worker", daemon=True)
        self._watch()

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs: not before `start`, nor after `stop`, nor once it has died."""
        return self._thread.is_alive()

    @property
    def has_died(self) -> bool:
        """Whether its thread has ended by a mistake of its own: nobody will ever be answered again."""
        return self._has_died

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop, so that new requests are refused."""
        return self._ends_at is not None

    def start(self) -> None:
        """Begin; once in a worker's life."""
        self._thread.start()

    def begin_stopping(self, grace: float) -> None:
        """Take no new requests, and in ``grace`` seconds end those that still run. Does not wait.

        A second call can only bring the end nearer.
        """
        with self._changed:
            ends_at = monotonic() + grace
            self._ends_at = ends_at if self._ends_at is None else min(ends_at, self._ends_at)
            self._changed.notify()

    def stop(self, grace: float) -> None:
        """`begin_stopping`, and wait until the thread has ended."""
        self.begin_stopping(grace)
        if self._thread.is_alive():
            self._thread.join()

    def submit(
        self, model: str, sequences: list[Sequence], on_update: OnUpdate, *, arrived_at: float | None = None
    ) -> Ticket:
        """Queue sequences that the engine of ``model`` has made. From any thread; never waits for a step.

        Args:
            on_update: called in the worker's thread with all that a step has brought to these sequences. It must not
                block. If it raises, the request is cancelled.
            arrived_at: when the request came, by `time.monotonic`; its time limit and its time to the first token
                count from there. None = now.

        Raises:
            RequestTooLargeError: one of them could not run even alone.
            WorkerDiedError, StoppingError, BusyError: it takes none, or no more for now.
        """
        offered = self.offer[model]
        assert sequences, "a request is for at least one answer"
        assert all(sequence.owner is offered.engine for sequence in sequences), f"{model} has not made these"
        trial = Scheduler(1, self.offer.scheduler.token_limit)  # refuses what the real one would, without touching it
        for sequence in sequences:
            trial.add(sequence)
        arrived_at = monotonic() if arrived_at is None else arrived_at
        ticket = Ticket(offered, sequences, on_update, arrived_at=arrived_at, cancel=self._cancel)
        with self._changed:
            if self.has_died:
                raise WorkerDiedError(DIED)
            if self.is_stopping:
                raise StoppingError("the server is shutting down and takes no new requests")
            if not self.is_alive:
                raise StoppingError("the server's worker does not run, so nobody would answer")
            if self._is_full_for(len(sequences)):
                raise BusyError(self.retry_after)
            self._unfinished += len(sequences)
            self._arrived.append(ticket)
            self._changed.notify()
        return ticket

    @property
    def retry_after(self) -> int:
        """Seconds until what runs now should have ended; see `retry_after`."""
        promised = sum(sequence.max_length - len(sequence) for sequence in list(self.offer.scheduler.running))
        return retry_after(promised, self._tokens, self._seconds, self.settings.time_limit)

    def _is_full_for(self, sequences: int) -> bool:
        """Whether so many more would wait that the queue is too long.

        Those who would be too many even in an empty queue have to come in some time: they do when nobody waits.
        """
        waiting, most = self._unfinished - self._places, self.settings.max_waiting
        could_fit = sequences <= most + self._places
        return waiting + sequences > most and (could_fit or waiting > 0)

    def _cancel(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket.strands and not ticket.is_cancelled:
                ticket.is_cancelled = True
                self._cancelled.append(ticket)
                self._changed.notify()

    # what follows is of the worker's thread alone; it never sleeps in a frame that knows a ticket

    def _run(self) -> None:
        self.offer.claim()
        try:
            while self._wait():
                for offered in self.offer.values():
                    self._take()
                    if not offered.engine.is_idle:
                        self._round(offered)
        except BaseException:
            logger.critical("the worker has died", exc_info=True)
            with self._changed:
                self._has_died = True  # so that nobody comes while those who are here are told
            try:
                self._end_all(FAILURE)
            except Exception:
                logger.exception("not everybody could be told of it")

    def _wait(self) -> bool:
        """Sleep until there is something to do; False once it was told to stop and there is nothing left."""
        with self._changed:
            while not (self._open or self._arrived or self._cancelled):
                if self.is_stopping:
                    return False
                self._changed.wait()
        return True

    def _take(self) -> None:
        """Let new requests in, and let go of those that are not wanted any more."""
        with self._changed:
            arrived, self._arrived = self._arrived, deque()
            cancelled, self._cancelled = self._cancelled, []
            for ticket in arrived:
                self._open[ticket] = None
        for ticket in arrived:
            for strand in ticket.strands.values() if not ticket.is_cancelled else ():
                ticket.offered.engine.add(strand.sequence)
                self.metrics.count_prompt(ticket.offered.id, strand.sequence.prompt_length)
        for ticket in cancelled:
            self._end(ticket)
        now = monotonic()
        if self._ends_at is not None and now >= self._ends_at:
            self._end_all(SHUTDOWN)
        for ticket in [each for each in self._open if now - each.arrived_at >= self.settings.time_limit]:
            self._end(ticket, TIMEOUT)

    def _round(self, offered: Offered) -> None:
        """One step of one engine, and the news of it."""
        began = monotonic()
        try:
            offered.engine.step()
        except Exception:
            logger.exception("model %s failed; what it was writing is ended", offered.id)
            self._give_up(offered)
        scheduler = self.offer.scheduler
        # whoever still waits after a step did not fit, so there was no place for more than now run
        self._places = len(scheduler.running) if scheduler.waiting else scheduler.max_batch
        tokens = 0
        for ticket in [each for each in self._open if each.offered is offered]:
            tokens += self._tell(ticket)
        self._tokens = MEMORY * self._tokens + tokens
        self._seconds = MEMORY * self._seconds + monotonic() - began

    def _give_up(self, offered: Offered) -> None:
        """Free what an engine that has raised was running; without any, what waits for it."""
        engine = offered.engine
        held = set(engine.running or [each for each in engine.scheduler.waiting if each.owner is engine])
        for ticket in self._open:
            for strand in ticket.strands.values():
                strand.is_lost = strand.sequence in held and not strand.sequence.is_finished
        for sequence in held:
            _leave(engine, sequence)

    def _end_all(self, error: str) -> None:
        with self._changed:
            self._open.update(dict.fromkeys(self._arrived))
            self._arrived.clear()
        for ticket in list(self._open):
            self._end(ticket, error)

    def _end(self, ticket: Ticket, error: str | None = None) -> None:
        """End all of a request that has not ended; without an error nobody is told."""
        for strand in ticket.strands.values():
            _leave(ticket.offered.engine, strand.sequence)
        if error is None:
            for _ in list(ticket.strands):
                self.metrics.count_finished(ticket.offered.id, "cancelled")
            self._close(ticket)
        else:
            self._tell(ticket, error)

    def _tell(self, ticket: Ticket, error: str | None = None) -> int:
        """Hand on what is new of a request, or that all of it ends by an error; returns the number of new tokens."""
        updates = [
            news
            for strand in ticket.strands.values()
            if (news := strand.news(error or (FAILURE if strand.is_lost else None)))
        ]
        if not updates:
            return 0
        tokens = self._measure(ticket, updates)
        on_update = ticket.on_update
        # before it is told, so that who has seen the end of an answer finds no trace of it
        if ended := [update.index for update in updates if update.finish_reason]:
            self._close(ticket, ended)
        if on_update is None or ticket.is_cancelled:
            return tokens
        try:
            on_update(updates)
        except Exception:
            logger.exception("a request to %s is ended: telling of its progress has failed", ticket.offered.id)
            ticket.cancel()
        return tokens

    def _measure(self, ticket: Ticket, updates: list[Update]) -> int:
        model, now, experts = ticket.offered.id, monotonic(), list[str]()
        for update in updates:
            strand = ticket.strands[update.index]
            if update.written and strand.last_token_at is None:
                self.metrics.count_first_token(model, now - ticket.arrived_at)
            elif update.written and strand.last_token_at is not None:
                self.metrics.count_wait(model, now - strand.last_token_at, len(update.written))
            if update.written:
                strand.last_token_at = now
            if update.finish_reason:
                known = update.error in (TIMEOUT, SHUTDOWN)
                self.metrics.count_finished(model, str(update.error) if known else update.finish_reason)
            experts += [record.expert for record, _ in update.written]
        self.metrics.count_written(model, experts)
        return len(experts)

    def _close(self, ticket: Ticket, ended: list[int] | None = None) -> None:
        """Forget these strands of a request, None = all; and the request itself with its last."""
        with self._changed:
            for index in list(ticket.strands) if ended is None else ended:
                del ticket.strands[index]
                self._unfinished -= 1
            if not ticket.strands:
                ticket.on_update = None
                self._open.pop(ticket, None)

    def _watch(self) -> None:
        scheduler = self.offer.scheduler
        runners = [runner for runner in self.offer.runners if isinstance(runner, Runner)]
        methods = {name: offered.engine.method for name, offered in self.offer.items()}
        drafting = {name: method for name, method in methods.items() if getattr(method, "drafted", None) is not None}
        self.metrics.watch(
            self.offer,
            {runner.name: partial(_rows, runner) for runner in runners},
            {
                "drafted_tokens": ("Tokens that were drafted for models to check.", _counted(drafting, "drafted")),
                "kept_tokens": ("Drafted tokens that stand.", _counted(drafting, "kept")),
                "reused_tokens": (
                    "Tokens of prompts that a model did not read, since an earlier one began alike.",
                    _counted({runner.name: runner for runner in runners}, "tokens_reused"),
                ),
            },
            requests_running=(
                "Requests that have not ended, waiting ones included.",
                lambda: len(self._open) + len(self._arrived),
            ),
            sequences_waiting=(
                "Answers that wait for a place.",
                lambda: len(scheduler.waiting) + sum(len(ticket.strands) for ticket in list(self._arrived)),
            ),
            sequences_running=("Answers that are being written.", lambda: len(scheduler.running)),
        )


def retry_after(promised: int, tokens: float, seconds: float, most: float) -> int:
    """Seconds in which tokens that are ``promised`` should be written, if ``tokens`` of late took ``seconds``.

    At least 1, also where nothing was measured, and no more than ``most``, which is what anybody may take.
    """
    expected = promised * seconds / tokens if tokens else 1.0
    return math.ceil(min(max(expected, 1.0), max(most, 1.0)))


def _rows(runner: Runner) -> int:
    return len(runner.cache.lengths)


def _counted(counters: Mapping[str, object], attribute: str) -> dict[str, Callable[[], float]]:
    return {name: partial(getattr, counter, attribute) for name, counter in counters.items()}


def _leave(engine: Engine, sequence: Sequence) -> None:
    """Take a sequence from its engine, whatever state a failed step has left the engine in."""
    try:
        engine.cancel(sequence)
    except Exception:
        logger.exception("a sequence could not be freed cleanly")
