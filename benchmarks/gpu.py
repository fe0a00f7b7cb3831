"""The engine on a GPU: models of the shape of Llama-3.1-8B in bfloat16, random, built on the device.

    python benchmarks/gpu.py --output benchmarks/results/gpu.json
    python benchmarks/gpu.py --render benchmarks/results/gpu.json
    python benchmarks/gpu.py --size tiny --device cpu --new 8 --rounds 1 --output FILE      # does it work?

A router and experts, one sequence and a batch: our engine beside `transformers.generate` of the router and of one
expert, in turns. `steady` stays with one expert, `restless` changes it at most tokens. Then, where vLLM can be
imported, one dense model of the same shape in vLLM, with weights that vLLM makes up. Times begin behind the first
token, vLLM's with the request. Without the device it says so in one line and measures nothing. The plugin has a
benchmark of its own, `vllm_speed.py`.
"""

import argparse
import gc
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from decoding import Ours, Theirs, random_prompts
from engine_speed import team
from measuring import described, part, processor, ratio, record, run, spread, table, timed, with_spread
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fusionroute.methods.fusion_route import FusionRoute

SIZES: dict[str, dict[str, Any]] = {
    "8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    },
}  # fmt: skip
PROMPT, CONTEXT = 128, 4096
TRACES = ("steady", "restless")
BOTH = "time per token / (router + expert by generate)"


def config(size: str) -> LlamaConfig:
    return LlamaConfig(max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=None, **SIZES[size])


def build(size: str, num_experts: int, device: str) -> tuple[LlamaForCausalLM, list[LlamaForCausalLM]]:
    """The router's language model and the experts, made on the device."""
    models = []
    for seed in range(num_experts + 1):
        torch.manual_seed(seed)
        with torch.device(device):
            models.append(AutoModelForCausalLM.from_config(config(size), dtype=torch.bfloat16).eval())
    return models[0], models[1:]


def bytes_needed(size: str, num_experts: int) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(size), dtype=torch.bfloat16)
    return (num_experts + 1) * sum(weight.nbytes for weight in model.parameters())


# ours and transformers'


def compared(
    router_lm: LlamaForCausalLM, experts: list[LlamaForCausalLM], count: int, new: int, rounds: int
) -> dict[str, Any]:
    prompts = random_prompts(count, PROMPT, router_lm.config.vocab_size)
    candidates: dict[str, Callable[[], float]] = {
        "router, generate": Theirs(router_lm, prompts, new),
        "expert, generate": Theirs(experts[0], prompts, new),
    }
    for trace in TRACES:
        models = team(router_lm, experts, trace, reachable=len(experts))
        models.router.to(router_lm.device)
        candidates[trace] = Ours(
            lambda models=models: FusionRoute(models), prompts, new, is_sampled=trace == "restless"
        )  # type: ignore[misc]
    seconds = in_turns(candidates, rounds)
    generate = zip(seconds["router, generate"], seconds["expert, generate"], strict=True)
    both = [router + expert for router, expert in generate]
    return {
        "milliseconds per step": {name: 1000 * statistics.median(each) for name, each in seconds.items()},
        "tokens/s": {name: count / statistics.median(each) for name, each in seconds.items()},
        "seconds": seconds,
        BOTH: {trace: ratio(seconds[trace], both) for trace in TRACES},
    }


def in_turns(candidates: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each candidate says, in every round but an unmeasured first one."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run_it in candidates.items():
            value = run_it()
            if number:
                found[name].append(value)
    return found


def in_transformers_and_ours(options: argparse.Namespace, counts: tuple[int, ...]) -> dict[str, Any]:
    models = build(options.size, options.experts, options.device)
    found = {
        count: part(f"{count} at once", lambda count=count: compared(*models, count, options.new, options.rounds))
        for count in counts
    }
    few, many = (found[count]["seconds"] for count in (counts[0], counts[-1]))
    grown = counts[-1] / counts[0]
    gained = {trace: ratio([grown * each for each in few[trace]], many[trace]) for trace in TRACES}
    return {f"{count} at once": each for count, each in found.items()} | {"tokens/s of the batch / of one": gained}


# vLLM's


def dense_in_vllm(size: str, counts: tuple[int, ...], new: int, rounds: int, device: str) -> dict[str, Any]:
    """Tokens per second of one dense model at each number of sequences; why not, where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return {"skipped": "vllm is not installed in this environment"}
    import vllm
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        described_as = config(size)
        described_as.architectures = ["LlamaForCausalLM"]
        described_as.save_pretrained(folder)
        model = LLM(
            folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", max_num_seqs=max(counts),
            max_model_len=PROMPT + new, enforce_eager=device == "cpu", enable_prefix_caching=False,
        )  # fmt: skip
        how = SamplingParams(max_tokens=new, ignore_eos=True, temperature=0, detokenize=False)
        result: dict[str, Any] = {"version": vllm.__version__}
        for count in counts:
            asked = [{"prompt_token_ids": ids} for ids in random_prompts(count, PROMPT, SIZES[size]["vocab_size"])]
            seconds = [timed(lambda asked=asked: model.generate(asked, how, use_tqdm=False)) for _ in range(rounds + 1)]
            result[str(count)] = {"tokens/s": spread([count * new / each for each in seconds[1:]])}
    return result


# the whole


def measure(options: argparse.Namespace) -> dict[str, Any]:
    counts = (1, options.batch)
    result: dict[str, Any] = {
        **record(),
        "what": {
            "models": f"random Llamas, {options.size}, bfloat16: a router and {options.experts} experts",
            "shape": SIZES[options.size],
            "device": device_name(options.device),
            "prompt": PROMPT,
            "new tokens": options.new,
            "rounds": options.rounds,
        },
        **in_transformers_and_ours(options, counts),
    }
    gc.collect()  # its models have gone
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    result["vLLM, one dense model"] = part(
        "vLLM", lambda: dense_in_vllm(options.size, counts, options.new, options.rounds, options.device)
    )
    return result


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return processor()


def render(results: dict[str, Any]) -> str:
    parts = [name for name in results if name.endswith(" at once")]
    rows = [
        [
            f"{name}, {trace}",
            with_spread(results[name][BOTH][trace]),
            f"{results[name]['milliseconds per step'][trace]:.2f}",
            *(f"{results[name]['tokens/s'][each]:.0f}" for each in (trace, "expert, generate")),
            _in_vllm(results["vLLM, one dense model"], name.split()[0]),
        ]
        for name in parts
        for trace in TRACES
    ]
    heads = ["", BOTH, "ms per step", "tokens/s", "tokens/s, one expert by generate", "tokens/s, one model in vLLM"]
    return f"{results['what']['device']}, {results['what']['models']}\n\n" + table(heads, rows)


def _in_vllm(found: dict[str, Any], count: str) -> str:
    return found.get("skipped") or f"{found[count]['tokens/s']['median']:.0f}"


def refuse_without_device(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """One line if there is no such device, or if the models are too large for it."""
    if not options.device.startswith("cuda"):
        return
    if not torch.cuda.is_available():
        sys.exit("skipped: no CUDA device here; --size tiny --device cpu tries the benchmark without one")
    needed, free = bytes_needed(options.size, options.experts), torch.cuda.mem_get_info(options.device)[0]
    if needed > 0.9 * free:
        sys.exit(
            f"skipped: {options.experts} experts and a router need {needed / 2**30:.0f} GiB of which "
            f"{free / 2**30:.0f} are free; lower --experts"
        )


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    run(parser, measure, render, refuse_without_device)


if __name__ == "__main__":
    main()
