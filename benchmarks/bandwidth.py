"""How much of the machine's read bandwidth single-stream decoding uses: every step has to read all weights once.

    python benchmarks/bandwidth.py --output benchmarks/results/bandwidth.json
    python benchmarks/bandwidth.py --render benchmarks/results/bandwidth.json

The bandwidth is that of the fastest of several kernels that read a buffer much larger than the caches, with as many
threads as the models get; each is repeated, and its median counts. In every round the fastest is timed again, then
every candidate decodes; a share is that of one round. Bytes are counted, not estimated: all weights but the table of
input embeddings, of which a step reads one row (unless the output layer is the same table), and the keys and values of
the positions before. Prompts are left out of the time and of the bytes. A step's matrix products alone, by the same
kernels, say what is left to gain around them.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from decoding import Ours, Theirs, random_prompts
from engine_speed import SIZES, VOCABULARY, build, team
from measuring import described, part, quotients, record, run, spread, table, timed, with_spread
from torch import nn
from transformers import PreTrainedModel

from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.single import Single
from fusionroute.models.linear import use_fast_linears

PROMPT, COLUMNS = 32, 2**12
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHOOSING = 5  # repeats of every kernel before the fastest is chosen


# the machine


def kernels(size: int) -> dict[str, Callable[[], object]]:
    """Ways of reading a buffer of about ``size`` bytes once."""
    rows = max(1, size // (4 * COLUMNS))
    matrix = torch.ones(rows, COLUMNS)
    vector, result, array = torch.ones(COLUMNS), torch.empty(rows), matrix.view(-1).numpy()
    half = matrix.to(torch.bfloat16).repeat(2, 1)
    threads = torch.get_num_threads()
    pool, pieces = ThreadPoolExecutor(threads), np.array_split(array, threads)
    bits = np.array_split(array.view(np.int64), threads)
    return {
        "torch, sum of float32": lambda: matrix.sum(),
        "torch, maximum of float32": lambda: matrix.max(),
        "torch, float32 matrix times vector": lambda: torch.mv(matrix, vector, out=result),
        "torch, bfloat16 matrix times vector": lambda: torch.mv(half, half[0]),
        "numpy, sum of float32 in threads": lambda: list(pool.map(np.add.reduce, pieces)),
        "numpy, maximum of int64 in threads": lambda: list(pool.map(np.maximum.reduce, bits)),
    }


def bandwidth(size: int, repeats: int) -> tuple[dict[str, float], Callable[[], float]]:
    """Bytes per second of every kernel, the median of its repeats; and how to time the fastest once more."""
    ways, length = kernels(size), size // (4 * COLUMNS) * 4 * COLUMNS
    found = {
        name: length / statistics.median([timed(read) for _ in range(repeats + 1)][1:]) for name, read in ways.items()
    }
    fastest = max(found, key=found.__getitem__)
    return found, lambda: length / statistics.median(timed(ways[fastest]) for _ in range(3))


# what decoding reads


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that one step of one sequence reads."""
    embedding = model.get_input_embeddings().weight
    is_read_by_the_output = model.get_output_embeddings().weight.data_ptr() == embedding.data_ptr()
    whole = sum(weight.nbytes for weight in model.parameters())
    return whole if is_read_by_the_output else whole - embedding.nbytes + embedding[0].nbytes


class Products:
    """The matrix products of a step of one sequence and nothing else, by the kernels that our engine uses."""

    def __init__(self, model: PreTrainedModel, repeats: int):
        use_fast_linears(model)
        self.layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        self.inputs = {layer.in_features: torch.ones(1, layer.in_features, dtype=model.dtype) for layer in self.layers}
        self.repeats = repeats

    @property
    def bytes(self) -> int:
        return sum(layer.weight.nbytes for layer in self.layers)

    @torch.inference_mode()
    def __call__(self) -> float:
        """Seconds of one step's."""
        return timed(lambda: [self._step() for _ in range(self.repeats)]) / self.repeats

    def _step(self) -> None:
        for layer in self.layers:
            layer(self.inputs[layer.in_features])


def cache_bytes(model: PreTrainedModel, new: int) -> float:
    """Bytes of keys and values that a step reads, on average over those from the first new token to the last."""
    config = model.config
    per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    return per_position * (PROMPT + statistics.mean(range(1, new)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    size = int(options.buffer * 2**20)
    found, again = bandwidth(size, CHOOSING)
    fastest = max(found, key=found.__getitem__)
    print(f"{fastest}: {found[fastest] / 1e9:.1f} GB/s", flush=True)
    return {
        **record(),
        "what": {
            "models": f"random Llama, {options.size}, one sequence",
            "prompt": PROMPT,
            "new tokens": options.new,
            "rounds": options.rounds,
        },
        "bandwidth": {
            "buffer bytes": size,
            "repeats": CHOOSING,
            "bytes/s": found,
            "fastest": fastest,
        },
        **{name: part(name, lambda kind=kind: shares(options, kind, again)) for name, kind in DTYPES.items()},
    }


def shares(options: argparse.Namespace, dtype: torch.dtype, bandwidth: Callable[[], float]) -> dict[str, Any]:
    router_lm, experts = build(options.size, 2, dtype)
    models, prompts = team(router_lm, experts, "steady"), random_prompts(1, PROMPT, VOCABULARY)
    dense = experts[0]
    products = Products(dense, options.new)
    candidates: dict[str, Callable[[], float]] = {
        "one model, its matrix products alone": products,
        "one model, transformers.generate": Theirs(dense, prompts, options.new),
        "one model, our engine": Ours(lambda: Single(dense, "dense"), prompts, options.new),
        "team, our engine": Ours(lambda: FusionRoute(models), prompts, options.new),  # type: ignore[arg-type]
    }
    one = weight_bytes(dense) + cache_bytes(dense, options.new)
    route_head = sum(weight.nbytes for weight in models.router.route_head.parameters())
    read = dict.fromkeys(candidates, one) | {"team, our engine": 2 * one + route_head}
    read["one model, its matrix products alone"] = products.bytes
    speeds, seconds = _rounds(candidates, bandwidth, options.rounds)
    return {
        "bandwidth, bytes/s": spread(speeds),
        **{
            name: {
                "share of bandwidth": spread(quotients([read[name] / each for each in seconds[name]], speeds)),
                "bytes read per token": read[name],
                "milliseconds per token": 1000 * statistics.median(seconds[name]),
            }
            for name in candidates
        },
    }


def _rounds(
    candidates: dict[str, Callable[[], float]], bandwidth: Callable[[], float], rounds: int
) -> tuple[list[float], dict[str, list[float]]]:
    """Bandwidth, and seconds per token of each candidate, in every round but an unmeasured first one."""
    speeds, seconds = list[float](), {name: list[float]() for name in candidates}
    for number in range(rounds + 1):
        speed = bandwidth()
        taken = {name: run_it() for name, run_it in candidates.items()}
        if number:
            speeds.append(speed)
            for name, each in taken.items():
                seconds[name].append(each)
    return speeds, seconds


def render(results: dict[str, Any]) -> str:
    found = results["bandwidth"]
    rows = [[name, f"{speed / 1e9:.1f}"] for name, speed in found["bytes/s"].items()]
    return (
        table(["reading", "GB/s"], rows)
        + "\n\n"
        + table(
            ["", "decoding", "GB read per token", "ms per token", "share of bandwidth (min to max)"],
            list(_lines(results)),
        )
    )


def _lines(results: dict[str, Any]) -> Iterator[list[str]]:
    for dtype in DTYPES:
        for name, each in results[dtype].items():
            if "share of bandwidth" in each:
                yield [
                    dtype, name, f"{each['bytes read per token'] / 1e9:.2f}",
                    f"{each['milliseconds per token']:.1f}", with_spread(each["share of bandwidth"]),
                ]  # fmt: skip


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--size", choices=SIZES, default="200m")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--buffer", type=float, default=1024, help="MiB that are read; much more than the caches hold")
    run(parser, measure, render)


if __name__ == "__main__":
    main()
