"""A server under mixed traffic for some minutes: does its memory grow, and is everything given back at the end?

    python benchmarks/serving_soak.py --output benchmarks/results/serving_soak.json
    python benchmarks/serving_soak.py --render benchmarks/results/serving_soak.json

Clients in a process of their own draw what to do next, from a seed: read a stream to its end, hang up in the middle of
one or before it begins, ask without streaming, for several answers, for log-probabilities and provenance, echo a
prompt, or send one of many kinds of bad request. Every status is checked against what that kind deserves. The
resident memory of the server is read every few seconds. What is reported is the slope of a line through the means of
ten equal spans after the warm-up, with its 95 % interval: means of spans, since readings that follow each other are no
independent draws. In the end, gauges must be at zero.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection as Pipe
from typing import Any

from measuring import described, record, run
from serving import TASKS, TEAM, worker, write_random_team
from serving_clients import TEAM_HELP, Connection, Server, needs_team, running_server, some_team

SPANS = 10
WRONG = ("UNEXPECTED", "FAILED", "HANGING", "BROKEN OFF")
T_8 = 2.306  # Student's 97.5 % point with SPANS - 2 degrees of freedom
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BAD: dict[str, tuple[str, Any, int]] = {
    "invalid JSON": (CHAT, b'{"model": "team", "messages": [', 400),
    "invalid UTF-8": (CHAT, b'{"model": "team\xff"}', 400),
    "unknown field": (CHAT, {"temprature": 1}, 400),
    "unknown model": (CHAT, {"model": "nobody"}, 404),
    "wrong type": (CHAT, {"messages": "hello"}, 400),
    "no messages": (CHAT, {"messages": []}, 400),
    "huge n": (CHAT, {"n": 10**9}, 400),
    "negative limit": (CHAT, {"max_tokens": -1}, 400),
    "prompt too long": (CHAT, {"messages": [{"role": "user", "content": "far too long " * 5000}]}, 400),
    "token ids out of range": (COMPLETIONS, {"prompt": [10**9]}, 400),
    "body too large": (CHAT, b" " * (5 * 2**20), 413),
    "no such place": ("/v1/nothing", {}, 404),
}


class Caller:
    """One client: a connection that is opened again whenever it was given up, and what came of its requests."""

    def __init__(self, port: int, ids: Sequence[str], prompts: Sequence[str], seed: int):
        self.port, self.ids, self.prompts = port, ids, prompts
        self.draw = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.connection: Connection | None = None

    async def until(self, end: float) -> None:
        kinds = (self.whole_stream, self.left_stream, self.left_waiting, self.plain, self.several, self.echo, self.bad)
        while time.monotonic() < end:
            (kind,) = self.draw.choices(kinds, weights=(6, 4, 1, 3, 1, 2, 3))
            try:
                await asyncio.wait_for(kind(), 120)
            except TimeoutError:
                self.counts["HANGING: " + kind.__name__] += 1
                await self._hang_up()
        await self._hang_up()

    async def whole_stream(self) -> None:
        reply = await self._post(CHAT, self._chat(stream=True, provenance=self.draw.random() < 0.5))
        self._count("stream", reply.status, 200)
        self.counts["BROKEN OFF: stream without [DONE]"] += reply.status == 200 and not reply.is_done

    async def left_stream(self) -> None:
        reply = await self._post(CHAT, self._chat(stream=True), leave_after=self.draw.randint(1, 20))
        self._count("left stream", reply.status, 200)
        await self._hang_up()

    async def left_waiting(self) -> None:
        """Sent and given up at once, streamed or not."""
        sending = asyncio.ensure_future(self._post(CHAT, self._chat(stream=self.draw.random() < 0.5)))
        await asyncio.sleep(self.draw.random() * 0.02)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await self._hang_up()
        self.counts["left waiting"] += 1

    async def plain(self) -> None:
        wanted = {"logprobs": True, "top_logprobs": 3, "provenance": True, "candidates": 5}
        # who reads several tokenizers, or fixes its choice, gives no candidates: `team` always does
        reply = await self._post(CHAT, self._chat(model=self.ids[0], **wanted))
        self._count("plain", reply.status, 200)

    async def several(self) -> None:
        reply = await self._post(CHAT, self._chat(n=3, temperature=1.0, seed=self.draw.randint(0, 99)))
        self._count("several", reply.status, 200)

    async def echo(self) -> None:
        payload = {
            "model": self.ids[0], "prompt": self.draw.choice(self.prompts), "echo": True, "logprobs": 1,
            "max_tokens": self.draw.choice([0, 1, 8]), "temperature": 0,
        }  # fmt: skip
        reply = await self._post(COMPLETIONS, payload)
        self._count("echo", reply.status, 200)

    async def bad(self) -> None:
        name = self.draw.choice(list(BAD))
        path, changes, status = BAD[name]
        whole = {"model": self.ids[0], "prompt": "x"} if path == COMPLETIONS else self._chat()
        try:
            reply = await self._post(path, changes if isinstance(changes, bytes) else {**whole, **changes})
            self._count(name, reply.status, status)
            if status == 413:
                await self._hang_up()
        except (ConnectionError, asyncio.IncompleteReadError):
            # a body that is too large may be refused while it is still being sent
            self._count(name, 0, 0 if status == 413 else status)
            await self._hang_up()

    def _chat(self, **changes: Any) -> dict[str, Any]:
        return {
            "model": self.draw.choice(self.ids),
            "messages": [{"role": "user", "content": self.draw.choice(self.prompts)}],
            "temperature": self.draw.choice([0, 0.7, 1]),
            "max_tokens": self.draw.randint(1, 64),
            **changes,
        }

    async def _post(self, path: str, payload: Any, **options: Any) -> Any:
        if self.connection is None:
            self.connection = await Connection.open(self.port)
        try:
            reply = await self.connection.post(path, payload, **options)
        except (ConnectionError, asyncio.IncompleteReadError):
            await self._hang_up()
            raise
        if reply.headers.get("connection") == "close":
            await self._hang_up()
        return reply

    async def _hang_up(self) -> None:
        if self.connection is not None:
            self.connection.writer.transport.abort()
            await self.connection.close()
            self.connection = None

    def _count(self, name: str, status: int, expected: int) -> None:
        # a full queue is an answer too
        fine = status == expected or status == 429
        self.counts[f"{name}: {status}" if fine else f"UNEXPECTED {name}: {status}, not {expected}"] += 1


def callers(pipe: Pipe, port: int, ids: list[str], prompts: list[str], count: int, seconds: float, seed: int) -> None:
    async def everybody() -> Counter[str]:
        end = time.monotonic() + seconds
        each = [Caller(port, ids, prompts, 1000 * seed + at) for at in range(count)]
        results = await asyncio.gather(*(caller.until(end) for caller in each), return_exceptions=True)
        counts = sum((caller.counts for caller in each), Counter[str]())
        counts.update(f"FAILED: {result!r}" for result in results if result is not None)
        return counts

    pipe.send(dict(asyncio.run(everybody())))


def slope(times: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Growth per second of a line through the means of `SPANS` equal spans, with its 95 % interval."""
    cuts = [at * len(times) // SPANS for at in range(SPANS + 1)]
    spans = [slice(begin, end) for begin, end in itertools.pairwise(cuts)]
    x = [statistics.mean(times[span]) for span in spans]
    y = [statistics.mean(values[span]) for span in spans]
    line = statistics.linear_regression(x, y)
    left = [value - line.slope * at - line.intercept for at, value in zip(x, y, strict=True)]
    spread = sum((at - statistics.mean(x)) ** 2 for at in x)
    error = (sum(each**2 for each in left) / (SPANS - 2) / spread) ** 0.5
    return {"value": line.slope, "low": line.slope - T_8 * error, "high": line.slope + T_8 * error}


def watch(server: Server, pipe: Pipe, every: float) -> tuple[list[tuple[float, int]], dict[str, int]]:
    """Resident memory until the clients have ended, and what they counted."""
    began, readings = time.monotonic(), list[tuple[float, int]]()
    while not pipe.poll(every):
        readings.append((time.monotonic() - began, server.rss()))
        print(f"\r{readings[-1][0]:.0f} s, {readings[-1][1] / 2**20:.1f} MiB ", end="", flush=True)
    print()
    return readings, pipe.recv()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from fusionroute.zoo.tasks import examples

    prompts = [each.prompt for task in TASKS for each in examples(task, "test", 50)]
    with (
        some_team(options.team, write_random_team) as team,
        running_server(team, "--name", "team", "--cache-limit", options.cache_limit) as server,
    ):
        ids = server.model_ids()
        arguments = (server.port, ids, prompts, options.clients, options.seconds, options.seed)
        with worker(callers, *arguments) as pipe:
            readings, counts = watch(server, pipe, options.every)
        left = server.left()
        final = {name: value for name, value in server.metrics().items() if "_bucket" not in name}
        after = server.rss()
    warm = [reading for reading in readings if reading[0] >= options.warm_up * options.seconds]
    if len(warm) < 2 * SPANS:
        raise SystemExit(f"{len(warm)} readings after the warm-up are too few; lower --every or run for longer")
    growth = slope([at for at, _ in warm], [float(value) for _, value in warm])
    result = record()
    result["versions"] |= {name: version(name) for name in ("fastapi", "starlette", "uvicorn")}
    return {
        **result,
        "what": {
            "team": options.team,
            "clients": options.clients,
            "seconds": options.seconds,
            "warm-up left out": options.warm_up,
            "ids": ids,
        },
        "requests": dict(sorted(counts.items())),
        "unexpected": sum(count for name, count in counts.items() if name.startswith(WRONG)),
        "resident memory, bytes": {
            "first reading": readings[0][1],
            "after the warm-up": warm[0][1],
            "last reading": readings[-1][1],
            "most": max(value for _, value in readings),
            "after all had gone": after,
        },
        "growth after the warm-up, bytes per second": growth,
        "growth in ten minutes, share": {key: 600 * value / warm[0][1] for key, value in growth.items()},
        "left running or waiting at the end": left,
        "metrics at the end": final,
        "readings": [[round(at, 1), value] for at, value in readings],
    }


def render(results: dict[str, Any]) -> str:
    growth, memory = results["growth after the warm-up, bytes per second"], results["resident memory, bytes"]
    low, value, high = (60 * growth[key] / 2**10 for key in ("low", "value", "high"))
    return "\n".join(
        [
            f"{sum(results['requests'].values())} requests of {results['what']['clients']} clients in "
            f"{results['what']['seconds']:.0f} s; {results['unexpected']} unexpected answers",
            f"memory: {memory['after the warm-up'] / 2**20:.1f} MiB after the warm-up, "
            f"{memory['last reading'] / 2**20:.1f} MiB at the end; growth {value:.1f} KiB a minute "
            f"({low:.1f} to {high:.1f})",
            f"left running or waiting at the end: {results['left running or waiting at the end'] or 'nothing'}",
        ]
    )


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--team", default=TEAM, help=TEAM_HELP)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between readings of the memory")
    parser.add_argument("--warm-up", type=float, default=0.2, help="share of the time that is left out")
    parser.add_argument("--cache-limit", default="256MiB", help="so that the cache has its full size early")
    parser.add_argument("--seed", type=int, default=0)
    run(parser, measure, render, needs_team)


if __name__ == "__main__":
    main()
