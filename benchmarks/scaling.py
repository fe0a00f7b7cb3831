"""How time and memory grow with the number of experts, the number of sequences, the context and the size of models.

    python benchmarks/scaling.py --output benchmarks/results/scaling.json --picture docs/images/scaling.svg
    python benchmarks/scaling.py --render benchmarks/results/scaling.json --picture docs/images/scaling.svg

Random Llamas, float32. One of the four grows, the others stay: one sequence, a prompt of 32 tokens, models of 50M
parameters, three experts. Time is per token of each sequence behind its first one, medians over rounds in which all
points take turns, beside `transformers.generate` of one such model on the same prompts. More experts are asked along
one routing trace, which is checked. Memory is that of a process of its own for every point: its weights, its caches,
and how much it grew.
"""

import argparse
import gc
import io
import multiprocessing
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from decoding import Ours, Theirs, random_prompts
from engine_speed import SIZES, VOCABULARY, build, team
from measuring import conclude, described, parse, part, ratio, record, table, with_spread
from transformers import LlamaForCausalLM

from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.output import write_text

Models = tuple[LlamaForCausalLM, list[LlamaForCausalLM]]


@dataclass(frozen=True)
class Point:
    """What is measured once: everything but what grows stays as it is here."""

    value: int | str
    size: str = "50m"
    experts: int = 3
    sequences: int = 1
    context: int = 32
    new: int = 32

    def build(self) -> Models:
        return build(self.size, self.experts, torch.float32, context=self.context + self.new)

    def team(self, models: Models) -> Ours:
        """Two experts take turns, at the same places however many there are."""
        router_lm, experts = models
        made = team(router_lm, experts[: self.experts], "restless", reachable=2)
        return Ours(lambda: FusionRoute(made), self._prompts(), self.new, is_sampled=True)  # type: ignore[arg-type]

    def one_model(self, models: Models) -> Theirs:
        return Theirs(models[1][0], self._prompts(), self.new)

    def _prompts(self) -> list[list[int]]:
        return random_prompts(self.sequences, self.context, VOCABULARY)

    @property
    def bytes_needed(self) -> int:
        """About twice the weights: the engine may keep them in a second layout."""
        with torch.device("meta"):
            (one, _) = build(self.size, 0, torch.float32)
        return 2 * (self.experts + 1) * sum(weight.nbytes for weight in one.parameters())


EXPERTS, SEQUENCES, CONTEXT = "number of experts", "number of sequences", "length of the context"
SIZE = "size of the models"
COLUMNS = (
    "ms per token", "÷ one model by `generate` (min to max)", "first token, s", "weights, MiB", "caches, MiB",
    "process, MiB",
)  # fmt: skip


def points(new: int, quick: bool) -> dict[str, list[Point]]:
    plain = Point(0, size="tiny" if quick else "50m", new=new)
    experts, sequences, contexts, sizes = (
        ((2, 4), (1, 4), (64, 128), ("tiny",))
        if quick
        else ((2, 4, 8, 16), (1, 2, 4, 8, 16, 32, 64), (256, 512, 1024, 2048, 4096, 8192), tuple(reversed(SIZES)))
    )
    return {
        EXPERTS: [replace(plain, value=each, experts=each) for each in experts],
        SEQUENCES: [replace(plain, value=each, sequences=each) for each in sequences],
        CONTEXT: [replace(plain, value=each, context=each) for each in contexts],
        SIZE: [replace(plain, value=each, size=each) for each in sizes],
    }


# time


def times(found: Sequence[Point], rounds: int) -> list[dict[str, Any]]:
    """Of points that share their models: the one with most experts and the longest context builds them for all."""
    largest = max(found, key=lambda point: (point.experts, point.context))
    models = largest.build()
    ours, theirs = [point.team(models) for point in found], [point.one_model(models) for point in found]
    mine: list[list[float]] = [[] for _ in found]
    others: list[list[float]] = [[] for _ in found]
    for number in range(rounds + 1):
        for at in range(len(found)):
            taken = ours[at](), theirs[at]()
            if number:
                mine[at].append(taken[0])
                others[at].append(taken[1])
    if found[0].experts != found[-1].experts:
        assert all(each.traces == ours[0].traces for each in ours), "the comparison needs one routing trace"
    return [
        {
            "value": point.value,
            "milliseconds per token": 1000 * statistics.median(mine[at]),
            "milliseconds per token, one model by generate": 1000 * statistics.median(others[at]),
            "team / one model by generate": ratio(mine[at], others[at]),
            "seconds to the first token": ours[at].first,
            "seconds to the first token, one model by generate": theirs[at].first,
        }
        for at, point in enumerate(found)
    ]


# memory


def occupied(point: Point) -> dict[str, int]:
    """How much this process grows by a team and one run of it."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    models = point.build()
    ours = point.team(models)
    ours()
    gc.collect()
    weights = {weight.data_ptr(): weight.nbytes for model in (models[0], *models[1]) for weight in model.parameters()}
    return {
        "weight bytes": sum(weights.values()),
        "cache bytes": ours.cache_bytes,
        "process growth": psutil.Process().memory_info().rss - before,
    }


def in_a_process_of_its_own(point: Point) -> dict[str, int]:
    """Forked from one that has imported what is needed and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["decoding", "engine_speed", "fusionroute.methods.fusion_route"])
    with context.Pool(1) as pool:
        return pool.apply(occupied, (point,))


def along(found: list[Point], rounds: int) -> list[dict[str, Any]]:
    """Time and memory of every point; of one that does not fit, how much it would need."""
    free = psutil.virtual_memory().available
    fitting = [point for point in found if point.bytes_needed < free]
    groups = [[point] for point in fitting] if len({point.size for point in found}) > 1 else [fitting]
    measured = [each for group in groups for each in times(group, rounds)]
    for point, each in zip(fitting, measured, strict=True):
        each |= in_a_process_of_its_own(point)
    skipped = [
        {"value": point.value, "skipped": f"needs {point.bytes_needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free"}
        for point in found
        if point not in fitting
    ]
    return measured + skipped


def measure(options: argparse.Namespace) -> dict[str, Any]:
    axes = points(options.new, options.quick)
    result = {
        **record(),
        "what": {
            "models": "random Llamas, float32",
            "parameters": {size: parameters(size) for size in SIZES},
            "new tokens": options.new,
            "rounds": options.rounds,
        },
        **{
            axis: part(axis, lambda found=found: {"points": along(found, options.rounds)})
            for axis, found in axes.items()
        },
    }
    few, many = (result[EXPERTS]["points"][at] for at in (0, -1))
    name = "milliseconds per token"
    result[EXPERTS]["time per token with most / with fewest"] = many[name] / few[name]
    return result


def parameters(size: str) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in build(size, 0, torch.float32)[0].parameters())


# what came out


def shown(results: dict[str, Any], picture: Path | None) -> str:
    """`render`, and the picture if it is asked for."""
    if picture:
        draw(results, picture)
    return render(results)


def render(results: dict[str, Any]) -> str:
    return "\n\n".join(
        table(
            [axis, *COLUMNS],
            [_cells(point) for point in results[axis]["points"]],
        )
        for axis in (EXPERTS, SEQUENCES, CONTEXT, SIZE)
    )


def _cells(point: dict[str, Any]) -> list[str]:
    if "skipped" in point:
        return [str(point["value"]), point["skipped"], *[""] * 5]
    memory = [f"{point[name] / 2**20:.0f}" for name in ("weight bytes", "cache bytes", "process growth")]
    return [
        str(point["value"]),
        f"{point['milliseconds per token']:.1f}",
        with_spread(point["team / one model by generate"]),
        f"{point['seconds to the first token']:.2f}",
        *memory,
    ]


def draw(results: dict[str, Any], path: Path) -> None:
    """The same bytes from the same results: no date, no random ids; text as outlines, so no font is needed."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    style = {"svg.hashsalt": "fusionroute", "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    with plt.rc_context(style):
        figure, axes = plt.subplots(2, 4, figsize=(12, 5.4), layout="constrained")
        for column, axis in enumerate((EXPERTS, SEQUENCES, CONTEXT, SIZE)):
            found = [point for point in results[axis]["points"] if "skipped" not in point]
            x = [each["value"] for each in found]
            if axis == SIZE:
                x = [results["what"]["parameters"][size] / 1e6 for size in x]
            _draw_times(axes[0, column], x, found, axis)
            _draw_memory(axes[1, column], x, found, axis)
        axes[0, 0].set_ylabel("milliseconds per token\nof each sequence")
        axes[1, 0].set_ylabel("memory, GiB")
        for row, place in zip(axes, ("upper", "lower"), strict=True):
            lines = row[0].get_legend_handles_labels()
            figure.legend(*lines, loc=f"outside {place} center", ncols=3, frameon=False)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        plt.close(figure)
    write_text(path, "\n".join(line.rstrip() for line in svg.getvalue().splitlines()) + "\n")


def _draw_times(axes: Any, x: Sequence[float], found: Iterable[dict[str, Any]], axis: str) -> None:
    lines = (
        ("milliseconds per token", "o-", "#1f77b4", "team: router and one expert for each token"),
        ("milliseconds per token, one model by generate", "s--", "#7f7f7f", "one model, transformers.generate"),
    )
    for name, mark, colour, label in lines:
        axes.plot(x, [point[name] for point in found], mark, color=colour, label=label, markersize=4)
    axes.set_title(axis, fontsize=10)
    _ticks(axes, x, axis)


def _draw_memory(axes: Any, x: Sequence[float], found: Iterable[dict[str, Any]], axis: str) -> None:
    lines = (
        ("process growth", "o-", "#d62728", "process"),
        ("weight bytes", "^--", "#2ca02c", "weights"),
        ("cache bytes", "v:", "#9467bd", "caches"),
    )
    for name, mark, colour, label in lines:
        axes.plot(x, [point[name] / 2**30 for point in found], mark, color=colour, label=label, markersize=4)
    axes.set_xlabel("parameters of each model, millions" if axis == SIZE else axis)
    _ticks(axes, x, axis)


def _ticks(axes: Any, x: Sequence[float], axis: str) -> None:
    axes.set_ylim(bottom=0)
    if axis == SIZE:
        axes.set_xlim(left=0)
        return
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(x), [str(each) for each in x])
    axes.minorticks_off()


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models, two points of each: does it work?")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picture", type=Path, metavar="SVG", help="draw the results too")
    options = parse(parser)
    conclude(parser, options, measure, lambda results: shown(results, options.picture))


if __name__ == "__main__":
    main()
