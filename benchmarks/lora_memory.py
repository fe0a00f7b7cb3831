"""What three LoRA experts over one base cost: memory, and time per token, against three merged experts.

    python benchmarks/lora_memory.py --output benchmarks/results/lora_memory.json
    python benchmarks/lora_memory.py --render benchmarks/results/lora_memory.json

The base is a random Llama, saved to a temporary folder with three LoRAs in all its linear layers and with the three
merged models. Memory is measured in a process of its own each: bytes of parameters and buffers, each piece counted
once, and growth of the process, every weight touched. Speed is measured in one process that holds both teams and
alternates between them; a small router that picks another expert at most tokens makes the experts take turns.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from engine_speed import SIZES, VOCABULARY, Models, build, prompts
from measuring import alternate, conclude, described, parse, part, ratio, record
from transformers import PreTrainedModel

from fusionroute import GenerationSettings, Router
from fusionroute.engine.engine import Engine
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.models.adapters import add_lora
from fusionroute.models.loading import Loaded, load_model, save_model

NAMES = ("math", "code", "chat")
BASE, ADAPTERS, MERGED = "base", "adapters", "merged"
STD = 0.05  # of the LoRAs' second factors, enough for the experts to disagree


def write_models(folder: Path, size: str, rank: int) -> None:
    base, _ = build(size, 0, torch.float32)
    base.save_pretrained(folder / BASE)
    for seed, name in enumerate(NAMES):
        lm = add_lora(load_model(folder / BASE, device="cpu"), rank=rank, alpha=2 * rank)
        torch.manual_seed(seed)
        for weight_name, weight in lm.named_parameters():
            if "lora_B" in weight_name:
                torch.nn.init.normal_(weight, std=STD)
        save_model(lm, folder / ADAPTERS / name)
        save_model(load_model(folder / ADAPTERS / name, device="cpu", merge_adapter=True), folder / MERGED / name)


def load(folder: Path, what: str) -> list[PreTrainedModel]:
    """``base``: one model; ``adapters``: three over one base; ``merged``: three of their own."""
    if what == BASE:
        return [load_model(folder / BASE, device="cpu")]
    loaded: Loaded = {}
    return [load_model(folder / what / name, device="cpu", loaded=loaded) for name in NAMES]


def weight_bytes(models: Iterable[PreTrainedModel]) -> int:
    storages = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def memory(folder: Path, what: str) -> dict[str, float]:
    """Of this process, which must not have held models before."""
    gc.collect()
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    models = load(folder, what)
    seconds = time.perf_counter() - began
    with torch.inference_mode():
        for model in models:
            model(torch.tensor(prompts(1)), use_cache=False)
            assert float(model.get_input_embeddings().weight.sum()) < float("inf"), "rows no token asked for count too"
    gc.collect()
    return {
        "weight bytes": weight_bytes(models),
        "process growth": psutil.Process().memory_info().rss - before,
        "seconds to load": seconds,
    }


def in_a_process_of_its_own(folder: Path, what: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory", what, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


class Writing:
    """A callable that completes a prompt with experts that take turns, and remembers what it wrote."""

    def __init__(self, folder: Path, what: str, new: int):
        small, _ = build("tiny", 0, torch.float32)
        torch.manual_seed(1)
        router = Router(small, len(NAMES)).eval()
        torch.nn.init.normal_(router.route_head.weight)
        self.models = Models(router, dict(zip(NAMES, load(folder, what), strict=True)))  # type: ignore[arg-type]
        self.settings = GenerationSettings(max_new_tokens=new, ignore_eos=True, do_sample=True, seed=3)

    def __call__(self) -> None:
        engine = Engine(FusionRoute(self.models, complement=False))  # type: ignore[arg-type]
        (completion,) = engine.generate(prompts(1), self.settings)
        self.tokens = completion.token_ids
        self.experts = [record.expert for record in completion.trace]


def speed(folder: Path, new: int, rounds: int) -> dict:
    sharing, merged = Writing(folder, ADAPTERS, new), Writing(folder, MERGED, new)
    seconds = alternate({ADAPTERS: sharing, MERGED: merged}, rounds)
    changes = sum(left != right for left, right in zip(sharing.experts, sharing.experts[1:], strict=False))
    return {
        "adapters / merged": ratio(seconds[ADAPTERS], seconds[MERGED]),
        "milliseconds per token": {name: 1000 * statistics.median(each) / new for name, each in seconds.items()},
        "tokens equal": sharing.tokens == merged.tokens,
        "tokens": new,
        "share of tokens that change expert": changes / (new - 1),
        "experts that wrote": sorted(set(sharing.experts)),
    }


def switching(folder: Path) -> dict[str, float]:
    """Milliseconds peft would take to make another adapter of one model the active one: what sharing modules costs."""
    model = load_model(folder / ADAPTERS / NAMES[0], device="cpu")
    model.load_adapter(folder / ADAPTERS / NAMES[1], NAMES[1])
    times = []
    for name in ("default", NAMES[1]) * 10:
        began = time.perf_counter()
        model.set_adapter(name, inference_mode=True)
        times.append(1000 * (time.perf_counter() - began))
    return {"adapted layers": sum(hasattr(m, "lora_A") for m in model.modules()), "median": statistics.median(times)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    size, rank, new, rounds = options.size, options.rank, options.new, options.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder, size, rank)
        found = {
            what: part(f"memory, {what}", lambda what=what: in_a_process_of_its_own(folder, what))
            for what in (BASE, ADAPTERS, MERGED)
        }
        times = part("speed", lambda: speed(folder, new, rounds))
        switch = part("switching", lambda: switching(folder))
    result = record()
    result["versions"]["peft"] = version("peft")
    return {
        **result,
        "what": {
            "base": f"random Llama, {size}, float32, vocabulary {VOCABULARY}",
            "shape": SIZES[size],
            "adapters": f"{len(NAMES)} LoRAs of rank {rank} in all linear layers",
            "rounds": rounds,
        },
        "memory": found,
        "ratios": {
            f"{what} / one model": {
                key: found[what][key] / found[BASE][key] for key in ("weight bytes", "process growth")
            }
            for what in (ADAPTERS, MERGED)
        },
        "speed": times,
        "switching one model's adapter with peft, milliseconds": switch,
    }


def render(results: dict) -> str:
    lines = ["| | weights | process |", "|---|---|---|"]
    for what, label in ((BASE, "one model"), (ADAPTERS, "three LoRA experts"), (MERGED, "three merged experts")):
        found = results["memory"][what]
        cells = [f"{found[key] / 2**20:.0f} MiB" for key in ("weight bytes", "process growth")]
        if what != BASE:
            cells = [
                f"{cell} ({share:.2f} ×)"
                for cell, share in zip(cells, results["ratios"][f"{what} / one model"].values(), strict=True)
            ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    times = results["speed"]["adapters / merged"]
    lines.append(
        f"\nTime per token, LoRA / merged experts: {times['median']:.2f} ({times['min']:.2f} to {times['max']:.2f}); "
        f"same tokens: {'yes' if results['speed']['tokens equal'] else 'NO'}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--size", choices=SIZES, default="200m")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=[BASE, ADAPTERS, MERGED], help=argparse.SUPPRESS)  # a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parse(parser)
    transformers.logging.disable_progress_bar()
    if options.memory:
        print(json.dumps(memory(options.folder, options.memory)))
        return
    conclude(parser, options, measure, render)


if __name__ == "__main__":
    main()
