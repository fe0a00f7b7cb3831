"""What a server gives its clients: throughput, time to the first token and between tokens, and what it costs in memory.

    python benchmarks/serving.py --output benchmarks/results/serving.json
    python benchmarks/serving.py --render benchmarks/results/serving.json

Three processes: a real ``fusionroute serve`` on a trained zoo team, clients, and the engine alone (no HTTP) on the same
team. In every round each number of clients is measured at the server and then as a batch of that size in the engine, so
that a machine whose speed drifts slows both. A client asks, reads its stream to the end, and asks again at once. All
answers have one length: prompts are kept whose greedy answer is longer, and `max_tokens` cuts it; tokens are counted by
the server's own usage and checked. Times are taken by the client, from the moment a request is sent. The server and the
engine get one thread: the models are too small for a second one, and the clients need a core.

The second part, memory, serves a random team of some size: one model id asked, every id asked, and, in the library,
what a copy of its models for every id would take.
"""

import argparse
import asyncio
import gc
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measuring import described, part, quotients, record, run
from serving_clients import TEAM_HELP, Connection, Reply, needs_team, running_server, some_team

CLIENTS = (1, 4, 16, 64)
TEAM = "runs/zoo_comparison/team-0"
TASKS = ("sums", "functions", "words", "sum_and_words", "sum_in_code", "all_three")
BATCH = max(CLIENTS)
DRAWS = 1000
SIZES: dict[str, dict[str, int]] = {
    "50m": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 10, "num_attention_heads": 10},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
EXPERTS = ("math", "code", "chat")


# other processes: each answers questions through a pipe until it is closed


@contextmanager
def worker(serve: Callable[..., None], *arguments: Any) -> Iterator[Pipe]:
    """A process that runs ``serve(pipe, *arguments)`` with one thread for torch."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    os.environ["OMP_NUM_THREADS"] = "1"
    process = context.Process(target=serve, args=(its, *arguments), daemon=True)
    process.start()
    its.close()
    try:
        yield mine
    finally:
        mine.close()
        process.join(30)
        if process.is_alive():
            process.kill()


def questions(pipe: Pipe) -> Iterator[Any]:
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


def engine_alone(pipe: Pipe, location: str, new: int, count: int) -> None:
    """First says which prompts have answers of more than ``new`` tokens; then completes them in batches."""
    from fusionroute import GenerationSettings, Team
    from fusionroute.cli.console import quiet
    from fusionroute.zoo.tasks import examples

    quiet()
    team = Team.from_pretrained(location, device="cpu")
    asked = [each.prompt for task in TASKS for each in examples(task, "test", count)]
    found = team.generate([_messages(prompt) for prompt in asked], max_new_tokens=new)
    prompts = [prompt for prompt, answer in zip(asked, found, strict=True) if len(answer.token_ids) == new]
    pipe.send(prompts)
    encoded = [team.prompt_format.encode(_messages(prompt)) for prompt in prompts]
    settings = GenerationSettings(max_new_tokens=new)
    engines = {size: team.engine(max_batch=size) for size in CLIENTS}
    for size, each in questions(pipe):
        ids = [encoded[at % len(encoded)] for at in range(size * each)]
        began = time.perf_counter()
        answers = engines[size].generate(ids, settings)
        seconds = time.perf_counter() - began
        pipe.send(sum(len(answer.token_ids) for answer in answers) / seconds)


def clients(pipe: Pipe, port: int, model: str, new: int, prompts: list[str]) -> None:
    for size, each in questions(pipe):
        pipe.send(asyncio.run(_ask(port, model, new, prompts, size, each)))


async def _ask(port: int, model: str, new: int, prompts: list[str], size: int, each: int) -> dict[str, Any]:
    """So many clients at once, each asking ``each`` times, one after another."""
    connections = [await Connection.open(port) for _ in range(size)]
    payloads = [
        {
            "model": model,
            "messages": _messages(prompts[at % len(prompts)]),
            "temperature": 0,
            "max_tokens": new,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for at in range(size * each)
    ]

    async def one(at: int) -> list[Reply]:
        return [await connections[at].post("/v1/chat/completions", payloads[at + size * turn]) for turn in range(each)]

    began = time.perf_counter()
    replies = [reply for found in await asyncio.gather(*(one(at) for at in range(size))) for reply in found]
    seconds = time.perf_counter() - began
    for connection in connections:
        await connection.close()
    tokens = [reply.completion_tokens for reply in replies]
    assert all(reply.is_done for reply in replies), "a stream broke off"
    assert tokens == [new] * len(replies), f"answers of other lengths than {new}: {sorted(set(tokens))}"
    times = [reply.token_times() for reply in replies]
    return {
        "tokens/s": sum(tokens) / seconds,
        "first": [each[0] for each in times],
        "between": [np.diff(each).tolist() for each in times],
        "seconds": [reply.seconds for reply in replies],
        "events": sum(len(each) for each in times),
        "tokens": sum(tokens),
    }


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


# figures


def percentile(groups: Sequence[Sequence[float]], share: float) -> dict[str, float]:
    """A percentile of all values, in milliseconds; its 95 % interval by a bootstrap that draws whole requests."""
    arrays = [1000 * np.asarray(group) for group in groups if len(group)]
    generator = np.random.default_rng(0)
    draws = [
        np.percentile(np.concatenate([arrays[at] for at in generator.integers(len(arrays), size=len(arrays))]), share)
        for _ in range(DRAWS)
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": float(np.percentile(np.concatenate(arrays), share)), "low": float(low), "high": float(high)}


def over_rounds(values: Sequence[float]) -> dict[str, float]:
    """Median over rounds, its 95 % bootstrap interval, and the extremes."""
    draws = np.median(np.random.default_rng(0).choice(np.asarray(values), (DRAWS, len(values))), axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return {
        "median": statistics.median(values), "low": float(low), "high": float(high),
        "min": min(values), "max": max(values),
    }  # fmt: skip


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    return over_rounds(quotients(above, below))


def summary(rounds: Sequence[dict[str, Any]], alone: Sequence[float]) -> dict[str, Any]:
    """What all rounds at one number of clients come to."""
    first = [[value] for each in rounds for value in each["first"]]
    between = [values for each in rounds for values in each["between"]]
    served = [each["tokens/s"] for each in rounds]
    return {
        "requests": len(first),
        "tokens": sum(each["tokens"] for each in rounds),
        "events that show text per token": sum(each["events"] for each in rounds)
        / sum(each["tokens"] for each in rounds),
        "tokens/s": over_rounds(served),
        "tokens/s, engine alone": over_rounds(alone),
        "server / engine alone": ratio(served, alone),
        "time to first token, ms": {"p50": percentile(first, 50), "p95": percentile(first, 95)},
        "time between tokens, ms": {"p50": percentile(between, 50), "p95": percentile(between, 95)},
    }


# speed


def speed(location: str, new: int, rounds: int, each: int, clients_at: Sequence[int]) -> dict[str, Any]:
    with (
        worker(engine_alone, location, new, 100) as engine,
        running_server(location, "--name", "team", "--max-batch", str(BATCH)) as server,
    ):
        prompts = engine.recv()
        if len(prompts) < 16:
            raise SystemExit(f"only {len(prompts)} prompts have answers of {new} tokens or more; lower --new")
        with worker(clients, server.port, "team", new, prompts) as asking:
            found = _in_turns(asking, engine, rounds, each, clients_at)
        left = server.left()
    served = {size: [turn["tokens/s"] for turn in found[size][0]] for size in clients_at}
    return {
        "prompts": len(prompts),
        "clients": {str(size): summary(*found[size]) for size in clients_at},
        "tokens/s against one client": {
            str(size): ratio(served[size], served[clients_at[0]]) for size in clients_at[1:]
        },
        "left running or waiting at the end": left,
    }


def _in_turns(
    asking: Pipe, engine: Pipe, rounds: int, each: int, clients_at: Sequence[int]
) -> dict[int, tuple[list[dict[str, Any]], list[float]]]:
    """After one unmeasured round: server and engine by turns, at every number of clients, in every round."""
    found: dict[int, tuple[list[dict[str, Any]], list[float]]] = {size: ([], []) for size in clients_at}
    for turn in range(rounds + 1):
        for size in clients_at:
            for pipe, values in zip((asking, engine), found[size], strict=True):
                # few clients ask more often, so that a turn is not over before it is measured
                pipe.send((size, max(each, 8 // size)))
                value = pipe.recv()
                if turn:
                    values.append(value)
        print(".", end="", flush=True)
    return found


# memory


def write_random_team(folder: Path, size: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fusionroute import Router, Team
    from fusionroute.models.loading import load_tokenizer
    from fusionroute.zoo.build import weights_folder

    tokenizer = load_tokenizer(weights_folder("math"))
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=2048, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, **SIZES[size],
    )  # fmt: skip
    models = []
    for seed in range(len(EXPERTS) + 1):
        torch.manual_seed(seed)
        models.append(LlamaForCausalLM(config).eval())
    router = Router(models[0], len(EXPERTS)).eval()
    team = Team(router, dict(zip(EXPERTS, models[1:], strict=True)), tokenizer, "chat_template")
    team.save_pretrained(folder, save_experts=True)


def one_id(location: str) -> list[Any]:
    """The team's own method; methods and ids as a list of what each needs."""
    from fusionroute import Team

    return [Team.from_pretrained(location, device="cpu").engine()]


def all_ids_shared(location: str) -> list[Any]:
    from fusionroute.server.offer import Offer

    return [each.engine for each in Offer.open(location, device="cpu").values()]


def a_copy_per_id(location: str) -> list[Any]:
    """Engines for the same ids, each over models that it alone has loaded, and no more of them than it needs."""
    from fusionroute import Team
    from fusionroute.engine.engine import Engine
    from fusionroute.methods.averaging import Averaging
    from fusionroute.methods.single import Single
    from fusionroute.models.loading import load_model, load_tokenizer
    from fusionroute.models.team import expert_references

    tokenizer = load_tokenizer(Path(location) / "router")

    def load(reference: Any) -> Any:
        return load_model(reference, device="cpu")

    experts = expert_references(Path(location))
    methods = [Single(load(Path(location) / "router"), "router")]
    methods += [Single(load(reference), name) for name, reference in experts.items()]
    averaging = Averaging({name: load(reference) for name, reference in experts.items()})
    whole = [Team.from_pretrained(location, device="cpu").engine(complement=complement) for complement in (True, False)]
    return [*whole, *(Engine(method, tokenizer) for method in (*methods, averaging))]


HOLDING = {"one id": one_id, "all ids, shared": all_ids_shared, "a copy for each id": a_copy_per_id}


def occupied(pipe: Pipe, location: str, what: str) -> None:
    """How much this process grows by the engines, every weight of which has been read once."""
    import torch

    import fusionroute.server.offer  # noqa: F401 (what is imported must not count as held)
    from fusionroute import GenerationSettings
    from fusionroute.cli.console import quiet

    quiet()
    gc.collect()
    before = psutil.Process().memory_info().rss
    engines = HOLDING[what](location)
    models = {}
    for engine in engines:
        engine.generate([list(range(10, 42))], GenerationSettings(max_new_tokens=8, ignore_eos=True))
        for runner in engine.method.runners:
            models[id(runner.model)] = runner.model
    storages: dict[int, int] = {}
    for model in models.values():
        for tensor in (*model.parameters(), *model.buffers()):
            assert torch.isfinite(tensor.float().sum()), "every page of every weight is touched"
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    gc.collect()
    growth = psutil.Process().memory_info().rss - before
    pipe.send({"engines": len(engines), "weight bytes": sum(storages.values()), "process growth": growth})


def memory(size: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        location = str(Path(name) / "team")
        write_random_team(Path(location), size)
        result: dict[str, Any] = {"in the library": {}}
        for what in HOLDING:
            with worker(occupied, location, what) as pipe:
                result["in the library"][what] = pipe.recv()
        with running_server(location, "--cache-limit", "256MiB") as server:
            ids = server.model_ids()
            result["served"] = {"ids": len(ids), "ready": server.rss()}
            asyncio.run(_ask_each(server.port, ids[:1]))
            result["served"]["one id asked"] = server.rss()
            asyncio.run(_ask_each(server.port, ids))
            result["served"]["every id asked"] = server.rss()
    library = result["in the library"]
    result["ratios, process growth"] = {
        f"{what} / one id": library[what]["process growth"] / library["one id"]["process growth"]
        for what in ("all ids, shared", "a copy for each id")
    }
    return result


async def _ask_each(port: int, ids: Sequence[str]) -> None:
    connection = await Connection.open(port)
    for model in ids:
        payload = {"model": model, "messages": _messages("How much is 12 + 30?"), "max_tokens": 16, "temperature": 0}
        reply = await connection.post("/v1/chat/completions", payload)
        assert reply.status == 200, (model, reply.status, reply.body)
    await connection.close()


# the whole


def measure(options: argparse.Namespace) -> dict[str, Any]:
    result = record()
    result["versions"] |= {name: version(name) for name in ("fastapi", "starlette", "uvicorn")}
    result |= {
        "what": {
            "team": options.team,
            "threads of server and engine": 1,
            "new tokens": options.new,
            "rounds": options.rounds,
            "requests of each client in a round": f"{options.each}, and 8 by all together at least",
            "memory, team": f"random Llamas, {options.size}, {SIZES[options.size]}",
        },
    }
    if "speed" in options.parts:
        with some_team(options.team, write_random_team) as team:
            result["speed"] = part(
                "speed", lambda: speed(team, options.new, options.rounds, options.each, tuple(options.clients))
            )
    if "memory" in options.parts:
        result["memory"] = part("memory", lambda: memory(options.size))
    return result


def render(results: dict[str, Any]) -> str:
    lines = []
    if "speed" in results:
        lines += [
            "| clients | tokens/s (95 % interval) | / one client | / engine alone | first token, ms: p50, p95 | "
            "between tokens, ms: p50, p95 | requests |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_row(results["speed"], size) for size in results["speed"]["clients"]]
    if "memory" in results:
        lines += ["", "| held | weights | process |", "|---|---|---|"]
        for what, found in results["memory"]["in the library"].items():
            lines.append(f"| {what} | {_mib(found['weight bytes'])} | {_mib(found['process growth'])} |")
        served = results["memory"]["served"]
        lines += [
            f"| server, {served['ids']} ids: {what} | | {_mib(served[what])} |"
            for what in ("ready", "one id asked", "every id asked")
        ]
    return "\n".join(lines)


def _row(found: dict[str, Any], size: str) -> str:
    each, against = found["clients"][size], found["tokens/s against one client"].get(size)
    times = [each[f"time {what}, ms"] for what in ("to first token", "between tokens")]
    return "| " + " | ".join(
        [
            size,
            _with_interval(each["tokens/s"], 0),
            _with_interval(against, 2) if against else "",
            _with_interval(each["server / engine alone"], 2),
            *(", ".join(f"{time[share]['value']:.1f}" for share in ("p50", "p95")) for time in times),
            str(each["requests"]),
        ]
    ) + " |"  # fmt: skip


def _with_interval(value: dict[str, float], digits: int) -> str:
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--parts", nargs="+", choices=("speed", "memory"), default=("speed", "memory"))
    parser.add_argument("--team", default=TEAM, help=TEAM_HELP)
    parser.add_argument("--clients", nargs="+", type=int, choices=CLIENTS, default=CLIENTS)
    parser.add_argument("--new", type=int, default=48, help="tokens of every answer")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--each", type=int, default=4, help="requests of each client in a round")
    parser.add_argument("--size", choices=SIZES, default="50m", help="of the models whose memory is measured")
    run(parser, measure, render, lambda parser, options: "speed" in options.parts and needs_team(parser, options))


if __name__ == "__main__":
    main()
