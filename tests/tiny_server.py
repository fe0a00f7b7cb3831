"""A tiny team's offer and its worker, started and stopped; and requests to it that are waited for."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import tiny
from fusionroute import Team
from fusionroute.config import GenerationSettings
from fusionroute.engine.sequence import Sequence
from fusionroute.server.metrics import Metrics
from fusionroute.server.offer import Offer
from fusionroute.server.settings import ServerSettings
from fusionroute.server.ticket import Ticket, Update
from fusionroute.server.worker import Worker

NAME = "tiny"
PATIENCE = 60.0  # seconds after which a test that waits is a test that failed


def offer(team: Team | None = None, *, max_batch: int = 8, **limits: Any) -> Offer:
    """What a server offers of a tiny team, all ids under `NAME`."""
    return Offer.of_team(team or tiny.team(prompt="chat_template"), NAME, max_batch=max_batch, **limits)


@contextmanager
def running(offered: Offer, **settings: Any) -> Iterator[Worker]:
    """A started worker over an offer, stopped at once in the end."""
    worker = Worker(offered, ServerSettings.parse(settings), Metrics())
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(0)


@dataclass
class Asked:
    """A request and all that was said of it."""

    updates: list[Update] = field(default_factory=list)
    rounds: int = 0
    ticket: Ticket | None = None
    unfinished: set[int] = field(default_factory=set)
    ended: threading.Event = field(default_factory=threading.Event)
    has_begun: threading.Event = field(default_factory=threading.Event)

    def on_update(self, updates: list[Update]) -> None:
        self.rounds += 1
        self.updates += updates
        self.unfinished -= {update.index for update in updates if update.finish_reason}
        self.has_begun.set()
        if not self.unfinished:
            self.ended.set()

    def wait(self) -> "Asked":
        assert self.ended.wait(PATIENCE), "the request has not ended"
        return self

    def wait_for_token(self) -> "Asked":
        assert self.has_begun.wait(PATIENCE), "nothing was written"
        return self

    def of(self, index: int) -> list[Update]:
        return [update for update in self.updates if update.index == index]

    def text(self, index: int = 0) -> str:
        return "".join("".join(text for _, text in each.written) + each.rest for each in self.of(index))

    def ids(self, index: int = 0) -> list[int]:
        return [record.token_id for each in self.of(index) for record, _ in each.written]

    def reason(self, index: int = 0) -> str | None:
        return self.of(index)[-1].finish_reason

    def error(self, index: int = 0) -> str | None:
        return self.of(index)[-1].error


def sequences(worker: Worker, prompts: list[Any], model: str = NAME, **settings: Any) -> list[Sequence]:
    """As the HTTP side makes them: encoded and checked in the calling thread."""
    offered, parsed = worker.offer[model], GenerationSettings.parse(settings)
    return [offered.engine.sequence(offered.prompt_format.encode(prompt), parsed, prompt) for prompt in prompts]


def ask(worker: Worker, *prompts: Any, model: str = NAME, **settings: Any) -> Asked:
    """Submit a request of one sequence for each prompt."""
    made = sequences(worker, list(prompts), model, **settings)
    asked = Asked(unfinished=set(range(len(made))))
    asked.ticket = worker.submit(model, made, asked.on_update)
    return asked


def gauges(worker: Worker) -> dict[str, float]:
    """All gauges by name; those with a model by ``name{model}``."""
    found = {}
    for family in worker.metrics.registry.collect():
        for sample in family.samples if family.type == "gauge" else ():
            if not sample.name.endswith("_created"):
                found["".join([sample.name, *(f"{{{value}}}" for value in sample.labels.values())])] = sample.value
    return found


def wait_until(condition: Any, what: str = "it has not come true") -> None:
    """Look until it is true; for what has no event."""
    ends_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends_at, what
        time.sleep(0.002)
