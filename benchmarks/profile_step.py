"""Where the time of a step goes: the share outside the models' forward passes, and in which functions.

    python benchmarks/profile_step.py --output benchmarks/results/profile_step.json
    python benchmarks/profile_step.py --render benchmarks/results/profile_step.json
    python benchmarks/profile_step.py --output FILE --flame step.svg        # needs py-spy

A team of random Llamas: a router and three experts that take turns. The share is that of one round: wall time of all
steps behind the first, less what a clock around the models counts. The table by function is of a round of its own
under a profiler that stands still in forward passes. The flame graph is drawn by py-spy, which looks at this process
from outside, if it is installed.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from decoding import Ours, random_prompts
from engine_speed import SIZES, VOCABULARY, build, team
from measuring import described, part, record, run, spread, table, with_spread
from outside_forwards import ForwardClock, Profile

from fusionroute.engine.engine import Engine
from fusionroute.methods.fusion_route import FusionRoute

PROMPT, EXPERTS, FUNCTIONS = 32, 3, 15
COUNTS = (1, 16)


class Steps:
    """An engine behind its first token: everybody has read the prompt and writes one token a step."""

    def __init__(self, candidate: Ours):
        self.engine = Engine(candidate.method(), max_batch=len(candidate.prompts))
        self.models = [runner.model for runner in self.engine.method.runners]  # type: ignore[attr-defined]
        for prompt in candidate.prompts:
            self.engine.submit(prompt, candidate.settings)
        self.engine.step()

    def __call__(self) -> int:
        """Step until all answers are written; how many steps that took."""
        count = 0
        while not self.engine.is_idle:
            self.engine.step()
            count += 1
        return count


def outside(candidate: Ours, rounds: int) -> dict[str, Any]:
    """Shares and milliseconds per step, in every round but an unmeasured first one."""
    shares, each = list[float](), list[float]()
    for number in range(rounds + 1):
        steps, clock = Steps(candidate), ForwardClock()
        with clock.around(steps.models):
            began = time.perf_counter()
            count = steps()
            seconds = time.perf_counter() - began
        if number:
            shares.append(1 - clock.seconds / seconds)
            each.append(1000 * seconds / count)
    return {
        "share outside forward passes": spread(shares),
        "milliseconds per step": statistics.median(each),
        "milliseconds per step outside": statistics.median(
            share * whole for share, whole in zip(shares, each, strict=True)
        ),
        "passes per step": clock.passes / count,
        "outside, by function": by_function(candidate),
    }


def by_function(candidate: Ours) -> list[dict[str, Any]]:
    steps, profile = Steps(candidate), Profile()
    with profile.around(steps.models):
        steps()
    return profile.table(FUNCTIONS)


@contextmanager
def flame_graph(output: Path | None) -> Iterator[None]:
    """py-spy looking at this process during the block; without a word only if nobody asked for a picture."""
    spy = shutil.which("py-spy")
    if output is None or spy is None:
        if output is not None:
            print("no flame graph: py-spy is not installed (pip install py-spy)")
        yield
        return
    process = subprocess.Popen(
        [spy, "record", "--pid", str(os.getpid()), "--output", str(output), "--rate", "200", "--nonblocking"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(1)  # until it looks
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        if not output.exists():
            print(f"no flame graph: {errors.strip().splitlines()[-1] if errors.strip() else 'py-spy wrote none'}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    router_lm, experts = build(options.size, EXPERTS, torch.float32)
    models = team(router_lm, experts, "restless")
    method: Callable[[], FusionRoute] = lambda: FusionRoute(models)  # type: ignore[arg-type] # noqa: E731
    candidates = {
        count: Ours(method, random_prompts(count, PROMPT, VOCABULARY), options.new, is_sampled=True) for count in COUNTS
    }
    result = {
        **record(),
        "what": {
            "models": f"random Llamas, {options.size}, float32: a router and {EXPERTS} experts that take turns",
            "prompt": PROMPT,
            "new tokens": options.new,
            "rounds": options.rounds,
        },
    }
    for count, candidate in candidates.items():
        name = "1 sequence" if count == 1 else f"{count} sequences"
        result[name] = part(name, lambda candidate=candidate: outside(candidate, options.rounds))
    if options.flame:
        with flame_graph(options.flame):
            Steps(candidates[1])()
    return result


def render(results: dict[str, Any]) -> str:
    parts = [name for name, found in results.items() if "share outside forward passes" in found]
    head = table(
        ["", "share of a step outside forward passes (min to max)", "ms per step", "ms outside", "passes per step"],
        [[name, *_cells(results[name])] for name in parts],
    )
    return "\n\n".join([head, *(functions(results, name) for name in parts)])


def _cells(found: dict[str, Any]) -> list[str]:
    return [
        with_spread(found["share outside forward passes"], 3),
        f"{found['milliseconds per step']:.1f}",
        f"{found['milliseconds per step outside']:.2f}",
        f"{found['passes per step']:.2f}",
    ]


def functions(results: dict[str, Any], name: str) -> str:
    """The table by function of one part."""
    rows = [
        [f"`{each['function']}`", f"{100 * each['share']:.1f}", each["calls"]]
        for each in results[name]["outside, by function"]
    ]
    return table([f"{name}: function", "% of the time outside", "calls"], rows)


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--size", choices=SIZES, default="200m")
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flame", type=Path, metavar="SVG", help="also draw a flame graph of one stream by py-spy")
    run(parser, measure, render)


if __name__ == "__main__":
    main()
