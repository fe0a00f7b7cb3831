"""What prompts cost: one beginning shared by many requests, and a long prompt among running answers.

    python benchmarks/prompts.py --output benchmarks/results/prompts.json
    python benchmarks/prompts.py --render benchmarks/results/prompts.json

Random Llamas, float32, a router and two experts of which the first writes everything. Reuse: requests that share a
prefix arrive together; with and without take turns, on smaller models, since without it each request reads everything.
Parts: while some answers are being written a long prompt arrives, which is read in parts or at once; a gap is the time
between two tokens of a running answer, an ordinary step the median of those just before. "With the long answer" are the
steps after, in which its own answer is written too; in the last of them it leaves, and a copy of what was read of it is
kept. "Without it" are as many steps into which nothing arrives: what the machine itself does to the largest of them.
Memory is touched before, since a virtual machine may wait long for a page that it has never had.
"""

import argparse
import math
import statistics
import time
from typing import Any

import torch
from engine_speed import SIZES, Models, build, team
from measuring import alternate, described, part, ratio, record, run, spread, table, with_spread

from fusionroute import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.sequence import Sequence
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.models.size import free_bytes

NEW, LONG_NEW, WRITERS, WARM, ORDINARY = 16, 8, 8, 3, 8
WHOLE = 2**30  # a chunk that any prompt fits: read at once


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 32000, (count,), generator=generator).tolist()


class Shared:
    """A callable that answers requests with one beginning, and remembers when their first tokens came."""

    def __init__(self, models: Models, requests: int, prefix: int, *, reuse: bool):
        self.models, self.reuse = models, reuse
        beginning = tokens(prefix, seed=1)
        self.prompts = [[*beginning, at, *tokens(PROMPT_END, seed=at)] for at in range(requests)]
        self.first: list[float] = []  # seconds to the first token of the last request to have one, a run each

    def __call__(self) -> None:
        engine = Engine(FusionRoute(self.models), prefix_reuse=self.reuse)  # type: ignore[arg-type]
        settings = GenerationSettings(max_new_tokens=NEW, ignore_eos=True)
        start = time.perf_counter()
        sequences = [engine.submit(prompt, settings) for prompt in self.prompts]
        while not all(sequence.position for sequence in sequences):
            engine.step()
        self.first.append(time.perf_counter() - start)
        engine.run(sequences)
        self.answers = [sequence.output_ids for sequence in sequences]
        self.read = {runner.name: runner.tokens_read for runner in engine.method.runners}


PROMPT_END = 15  # tokens of each request's own, after one that differs in all of them


def shared(models: Models, requests: int, prefix: int, rounds: int) -> dict[str, Any]:
    with_it, without = (Shared(models, requests, prefix, reuse=reuse) for reuse in (True, False))
    seconds = alternate({"with": with_it, "without": without}, rounds)
    assert with_it.answers == without.answers, "reuse changes no token"
    return {
        "requests": requests,
        "shared tokens": prefix,
        "total without / with": ratio(seconds["without"], seconds["with"]),
        "first token without / with": ratio(without.first[1:], with_it.first[1:]),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "seconds to the first token": {
            "with": statistics.median(with_it.first[1:]),
            "without": statistics.median(without.first[1:]),
        },
        "tokens read": {"with": with_it.read, "without": without.read},
    }


def arrival(models: Models, length: int, chunk: int | None) -> dict[str, Any]:
    """One long prompt that arrives while others write."""
    engine, running, ordinary = writers(models, length, chunk)
    enough = running[0].settings
    late = engine.submit(tokens(length, seed=99), enough.model_copy(update={"max_new_tokens": LONG_NEW}))
    gaps, waits, after = [], 0, []
    while not late.position:
        gap, waited = step(engine, running)
        gaps.append(gap)
        waits += waited
    while not late.is_finished:
        gap, waited = step(engine, running)
        after.append(gap)
        waits += waited
    leave(engine, running)
    return {
        "chunk": engine.prefill_chunk,
        **compared(gaps, ordinary),
        "largest with the long answer / ordinary step": max(after) / ordinary,
        "with the long answer / ordinary step": statistics.median(after) / ordinary,
        "rounds until its first token": len(gaps),
        "rounds in which somebody got no token": waits,
        "seconds until its first token": sum(gaps),
        "seconds of an ordinary step": ordinary,
    }


def undisturbed(models: Models, length: int, chunk: int | None) -> dict[str, Any]:
    """As many steps as a long prompt would take, without one."""
    engine, running, ordinary = writers(models, length, chunk)
    gaps = [step(engine, running)[0] for _ in range(reading(length, engine))]
    leave(engine, running)
    return compared(gaps, ordinary)


def writers(models: Models, length: int, chunk: int | None) -> tuple[Engine, list[Sequence], float]:
    """Answers being written that will not end while a prompt is read, and the seconds of an ordinary step."""
    engine = Engine(FusionRoute(models), prefill_chunk=chunk)  # type: ignore[arg-type]
    most = WARM + ORDINARY + reading(length, engine) + LONG_NEW + WRITERS
    enough = GenerationSettings(max_new_tokens=most, ignore_eos=True)
    running = [engine.submit(tokens(32, seed=at), enough) for at in range(WRITERS)]
    for _ in range(WARM):
        engine.step()
    return engine, running, statistics.median(step(engine, running)[0] for _ in range(ORDINARY))


def reading(length: int, engine: Engine) -> int:
    """Rounds until router and expert have read it."""
    return 2 * -(-length // engine.prefill_chunk)


def leave(engine: Engine, running: list[Sequence]) -> None:
    assert not any(sequence.is_finished for sequence in running), "they write all the while"
    for sequence in running:
        engine.cancel(sequence)  # and with that the memory that the next engine is to have


def compared(gaps: list[float], ordinary: float) -> dict[str, float]:
    return {
        "largest gap / ordinary step": max(gaps) / ordinary,
        "95 % of gaps / ordinary step": quantile(gaps, 0.95) / ordinary,
        "median gap / ordinary step": statistics.median(gaps) / ordinary,
    }


def quantile(values: list[float], share: float) -> float:
    """The smallest of ``values`` that so many of them do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def touch() -> None:
    """Write to half of the memory that is free, and give it back."""
    torch.ones(free_bytes(torch.device("cpu")) // 2, dtype=torch.uint8)


def step(engine: Engine, running: list[Sequence]) -> tuple[float, bool]:
    """Seconds of one round, and whether a running answer got nothing in it."""
    before = [sequence.position for sequence in running]
    start = time.perf_counter()
    engine.step()
    seconds = time.perf_counter() - start
    return seconds, any(sequence.position == at for sequence, at in zip(running, before, strict=True))


def arrivals(models: Models, length: int, rounds: int, chunk: int | None) -> dict[str, Any]:
    touch()
    each: dict[str, list[dict[str, Any]]] = {"without it": [], "in parts": [], "at once": []}
    for _ in range(rounds):
        each["without it"].append(undisturbed(models, length, chunk))
        each["in parts"].append(arrival(models, length, chunk))
        each["at once"].append(arrival(models, length, WHOLE))
    result: dict[str, Any] = {"prompt": length, "running": WRITERS}
    for name, found in each.items():
        result[name] = {key: spread([one[key] for one in found]) for key in found[0]}
    result["its first token in parts / at once"] = ratio(
        *([one["seconds until its first token"] for one in each[name]] for name in ("in parts", "at once"))
    )
    return result


def measure(options: argparse.Namespace) -> dict[str, Any]:
    def models(size: str, longest: int) -> Models:
        router_lm, experts = build(size, 2, torch.float32, longest + 1024)
        return team(router_lm, experts, "steady", reachable=2)

    sharing, arriving = models(options.shared_size, options.shared), models(options.size, options.long)
    return {
        **record(),
        "what": {
            "models": f"random Llamas, float32: {options.shared_size} share a prefix, {options.size} get a long prompt",
            "new tokens": NEW,
            "rounds": options.rounds,
        },
        "shared prefix": part(
            "shared prefix", lambda: shared(sharing, options.requests, options.shared, options.rounds)
        ),
        "long prompt": part("long prompt", lambda: arrivals(arriving, options.long, options.rounds, options.chunk)),
    }


def render(results: dict[str, Any]) -> str:
    one, other = results["shared prefix"], results["long prompt"]
    what = f"{one['requests']} requests that share {one['shared tokens']} tokens"
    rows = [
        (f"{what}: seconds to the last first token, without / with reuse", one["first token without / with"]),
        (f"{what}: seconds in all, without / with reuse", one["total without / with"]),
    ]
    for name in ("without it", "in parts", "at once"):
        for key in (
            "largest gap / ordinary step",
            "95 % of gaps / ordinary step",
            "median gap / ordinary step",
            "largest with the long answer / ordinary step",
            "with the long answer / ordinary step",
            "rounds in which somebody got no token",
        ):
            if key in other[name]:
                rows.append((f"a prompt of {other['prompt']} tokens, {name}: {key}", other[name][key]))
    rows.append(("its first token, in parts / at once", other["its first token in parts / at once"]))
    return table(("what", "median (min to max)"), [(name, with_spread(value)) for name, value in rows])


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--size", choices=SIZES, default="200m", help="of the models that meet the long prompt")
    parser.add_argument("--shared-size", choices=SIZES, default="50m", help="of those that share a prefix")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--shared", type=int, default=1000, help="tokens that the requests share")
    parser.add_argument("--long", type=int, default=4000, help="tokens of the long prompt")
    parser.add_argument("--chunk", type=int, help="tokens of a part; by default what suits the device")
    parser.add_argument("--rounds", type=int, default=3)
    run(parser, measure, render)


if __name__ == "__main__":
    main()
