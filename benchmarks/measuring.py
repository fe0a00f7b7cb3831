"""What the benchmarks share: candidates that take turns, ratios inside a round, what a result says of itself, and how
a script ends. It knows no benchmark.

A machine whose speed drifts slows whoever runs at that moment. So candidates alternate, a ratio is that of one round,
and what is reported is the median of the ratios with their spread.
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fusionroute import environment
from fusionroute.output import write_json

ROOT = Path(__file__).resolve().parents[1]

Measure = Callable[[argparse.Namespace], dict[str, Any]]
Render = Callable[[dict[str, Any]], str]
Check = Callable[[argparse.ArgumentParser, argparse.Namespace], None]


# taking turns


def alternate(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(rounds + 1):
        for name, run_it in candidates.items():
            taken = timed(run_it)
            if round_number:
                seconds[name].append(taken)
    return seconds


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that ``work`` takes."""
    start = clock()
    work()
    return clock() - start


def part(label: str, measure_it: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure one part and say so, with its time: the whole takes a quarter of an hour and more."""
    start = time.perf_counter()
    print(f"{label} ...", end=" ", flush=True)
    result = measure_it()
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    return result


# figures


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of the rounds' ratios."""
    return spread(quotients(above, below))


def quartiles(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios, where there are many of them."""
    each = quotients(above, below)
    low, middle, high = statistics.quantiles(each, n=4)
    return {"median": middle, "lower quartile": low, "upper quartile": high, "n": len(each)}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def quotients(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Each round's ratio."""
    return [a / b for a, b in zip(above, below, strict=True)]


# what a result says of itself


def record() -> dict[str, Any]:
    """How, when and on what something was measured: the beginning of every result, without folders of the machine."""
    return {
        "command": command(sys.argv),
        "commit": environment.git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": environment.versions(),
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """`fusionroute.environment.machine` with the processor's name; accelerators have theirs."""
    return {"processor": processor(), **environment.machine()}


def processor() -> str:
    """What the processor calls itself, or its architecture where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def command(arguments: Sequence[str]) -> str:
    """The command line as anybody would type it in the repository's root."""
    return shlex.join(["python", *(_without_folders(each) for each in arguments)])


def _without_folders(argument: str) -> str:
    """Paths below the repository relative to it; of others, what comes last."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


# how a script ends


def run(parser: argparse.ArgumentParser, measure: Measure, render: Render, check: Check | None = None) -> None:
    """Measure and write what is found, or show what was found before, as the options say.

    Args:
        check: refuses options by ``parser.error`` before anything is measured.
    """
    conclude(parser, parse(parser), measure, render, check)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with those that every benchmark has."""
    parser.add_argument("--output", type=Path)
    parser.add_argument("--render", type=Path, help="print a finished result")
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args()


def conclude(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    measure: Measure,
    render: Render,
    check: Check | None = None,
) -> None:
    """`run`, where the options have been read already."""
    if options.render:
        print(render(json.loads(options.render.read_text(encoding="utf-8"))))
        return
    if options.output is None or (options.output.exists() and not options.overwrite):
        parser.error("give --output FILE; a file that exists needs --overwrite")
    if check is not None:
        check(parser, options)
    results = measure(options)
    write_json(options.output, results)
    print(render(results), f"\n\nwritten to {options.output}")


def described(text: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a script's own docstring."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


# tables


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def with_spread(values: dict[str, float], digits: int = 2) -> str:
    """``1.03 (0.99 to 1.12)`` of what `spread` or `quartiles` gives."""
    low, high = (
        values.get(name, values.get(other)) for name, other in (("min", "lower quartile"), ("max", "upper quartile"))
    )
    return f"{values['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
