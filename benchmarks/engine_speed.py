"""How fast the engine is: ratios inside one run, on random Llamas, written to a JSON file with versions.

    python benchmarks/engine_speed.py --output benchmarks/results/engine_speed.json
    python benchmarks/engine_speed.py --render benchmarks/results/engine_speed.json

Every comparison warms up, then alternates its candidates, so that a machine whose speed drifts slows both; what is
reported is the median over rounds of the ratio within a round, with the smallest and the largest. Two routing traces
are measured: `steady` stays with one expert; `restless` samples, so that a random route head changes expert at most
tokens, and every change costs a read of several tokens (greedy, a random model soon repeats itself and its routing).
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from measuring import alternate, described, part, ratio, record, run
from transformers import LlamaConfig, LlamaForCausalLM

from fusionroute import GenerationSettings, Router
from fusionroute.engine.engine import Engine
from fusionroute.methods.fusion_route import FusionRoute

SIZES = {
    "500m": {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 14, "num_attention_heads": 16},
    "200m": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16},
    "50m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
VOCABULARY, PROMPT, NEVER = 32000, 32, -1e4


class Models:
    """What a method needs of a team; random models have no tokenizer."""

    def __init__(self, router: Router, experts: dict[str, LlamaForCausalLM]):
        self.router, self.experts = router, experts
        self.eos_ids: frozenset[int] = frozenset()
        self.context_length = router.config.get_text_config().max_position_embeddings


def build(
    size: str, num_experts: int, dtype: torch.dtype, context: int = 2048
) -> tuple[LlamaForCausalLM, list[LlamaForCausalLM]]:
    """A router's language model and its experts, random but the same at every call."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=context, bos_token_id=None, eos_token_id=None, **SIZES[size]
    )
    models = []
    for seed in range(num_experts + 1):
        torch.manual_seed(seed)
        models.append(LlamaForCausalLM(config).to(dtype).eval())
    return models[0], models[1:]


def team(router_lm: LlamaForCausalLM, experts: list[LlamaForCausalLM], trace: str, reachable: int = 3) -> Models:
    """A team whose router writes the trace: `steady` always expert 0, `restless` any of the first ``reachable``."""
    router = Router(router_lm, len(experts), bias=True).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(7)
        rows = torch.randn(reachable, router_lm.config.hidden_size, generator=generator).to(router.dtype)
        router.route_head.weight.zero_()
        router.route_head.bias.fill_(NEVER)
        if trace == "steady":
            router.route_head.bias[0] = 0
        else:
            router.route_head.bias[:reachable] = 0
            router.route_head.weight[:reachable] = rows
    return Models(router, {f"expert{at}": expert for at, expert in enumerate(experts)})


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCABULARY, (count, PROMPT), generator=generator).tolist()


def generate(model: LlamaForCausalLM, new: int) -> Callable[[], None]:
    ids = torch.tensor(prompts(1))
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)


class Fused:
    """A callable that completes ``count`` prompts and remembers what it did."""

    def __init__(self, models: Models, new: int, count: int = 1, *, is_restless: bool = False):
        self.models, self.count = models, count
        self.settings = GenerationSettings(max_new_tokens=new, ignore_eos=True, do_sample=is_restless, seed=3)

    def __call__(self) -> None:
        engine = Engine(FusionRoute(self.models), max_batch=self.count)  # type: ignore[arg-type]
        completions = engine.generate(prompts(self.count), self.settings)
        self.runners = engine.method.runners
        self.traces = [[record.expert for record in completion.trace] for completion in completions]

    def changes(self) -> float:
        """Share of tokens that another expert wrote than the one before."""
        pairs = [pair for trace in self.traces for pair in itertools.pairwise(trace)]
        return sum(left != right for left, right in pairs) / len(pairs)

    def tokens_read(self, new: int) -> dict[str, float]:
        """Tokens each model read beyond the prompt, per output token; a prompt is read once by whoever is asked."""
        return {
            runner.name: max(0, runner.tokens_read - self.count * PROMPT) / (self.count * new)
            for runner in self.runners
        }


def one_stream(size: str, new: int, rounds: int) -> dict:
    router_lm, experts = build(size, 3, torch.float32)
    result = {}
    for trace in ("steady", "restless"):
        fused = Fused(team(router_lm, experts, trace), new, is_restless=trace == "restless")
        seconds = alternate(
            {"router": generate(router_lm, new), "expert": generate(experts[0], new), "fused": fused}, rounds
        )
        both = [r + e for r, e in zip(seconds["router"], seconds["expert"], strict=True)]
        result[trace] = {
            "fused / (router + expert)": ratio(seconds["fused"], both),
            "milliseconds per token": {
                name: 1000 * statistics.median(values) / new for name, values in seconds.items()
            },
            "tokens read per output token": fused.tokens_read(new),
            "share of tokens that change expert": fused.changes(),
        }
    return result


def expert_count(size: str, new: int, rounds: int) -> dict:
    router_lm, experts = build(size, 8, torch.float32)
    few, many = (Fused(team(router_lm, experts[:n], "restless", reachable=2), new, is_restless=True) for n in (2, 8))
    seconds = alternate({"2": few, "8": many}, rounds)
    assert few.traces == many.traces, "the comparison needs one routing trace"
    return {
        "8 experts / 2 experts": ratio(seconds["8"], seconds["2"]),
        "share of tokens that change expert": many.changes(),
    }


def batch(size: str, new: int, rounds: int, dtype: torch.dtype) -> dict:
    router_lm, experts = build(size, 3, dtype)
    result = {}
    for trace in ("steady", "restless"):
        models = team(router_lm, experts, trace)
        one, sixteen = (Fused(models, new, count=n, is_restless=trace == "restless") for n in (1, 16))
        seconds = alternate({"1": one, "16": sixteen}, rounds)
        per_second = {name: [int(name) * new / s for s in values] for name, values in seconds.items()}
        result[trace] = {
            "tokens/s at 16 / at 1": ratio(per_second["16"], per_second["1"]),
            "tokens/s": {name: statistics.median(values) for name, values in per_second.items()},
            "tokens read per output token": sixteen.tokens_read(new),
        }
    return result


def measure(options: argparse.Namespace) -> dict[str, Any]:
    size, new, rounds = options.size, options.new, options.rounds
    parts: dict[str, Callable[[], dict]] = {
        "one stream, 3 experts": lambda: one_stream(size, new, rounds),
        "number of experts": lambda: expert_count(size, new, rounds),
        # ratios of throughput settle sooner than those of single steps: half the tokens
        "batch, float32": lambda: batch(size, new // 2, rounds, torch.float32),
        "batch, bfloat16": lambda: batch(size, new // 2, rounds, torch.bfloat16),
    }
    return {
        **record(),
        "what": {
            "models": f"random Llama, {size}, float32 unless named",
            "parameters": sum(p.numel() for p in build(size, 0, torch.float32)[0].parameters()),
            "prompt": PROMPT,
            "new tokens": new,
            "rounds": rounds,
        },
        **{label: part(label, measure_it) for label, measure_it in parts.items()},
    }


def render(results: dict) -> str:
    stream, count = results["one stream, 3 experts"], results["number of experts"]
    rows = []
    for trace, values in stream.items():
        rows.append(
            (f"time per token / (router + one expert by generate), {trace}", values["fused / (router + expert)"])
        )
    rows.append(("time per token with 8 experts / with 2, same trace", count["8 experts / 2 experts"]))
    for dtype in ("float32", "bfloat16"):
        for trace, values in results[f"batch, {dtype}"].items():
            rows.append((f"tokens/s at 16 sequences / at 1, {dtype}, {trace}", values["tokens/s at 16 / at 1"]))
    lines = ["| what | median | min to max |", "|---|---|---|"]
    lines += [f"| {name} | {r['median']:.2f} | {r['min']:.2f} to {r['max']:.2f} |" for name, r in rows]
    for trace, values in stream.items():
        read = values["tokens read per output token"]
        experts = sum(value for name, value in read.items() if name != "router")
        name = f"tokens read per output token, {trace}: router; experts together"
        lines.append(f"| {name} | {read['router']:.2f}; {experts:.2f} | |")
    return "\n".join(lines)


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--size", choices=SIZES, default="200m")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    run(parser, measure, render)


if __name__ == "__main__":
    main()
