"""What serving a team in vLLM costs beside one dense model of the same work: tokens per second, many requests.

    .venv-vllm/bin/python benchmarks/vllm_speed.py --output benchmarks/results/vllm_speed.json
    python benchmarks/vllm_speed.py --render benchmarks/results/vllm_speed.json

Random Llamas: a router and three experts through the plugin, against single models of as many multiply-adds for each
token that is written: every model of the team reads every token there, and two LM heads are read. A large model is not
a small one of twice the width, so there are two of them. "grown" has the shape that four times the size has in real
families (Qwen3's 8B and 32B: 1.25 times as wide, 1.8 times as deep, with twice the MLP); "wide" is twice as wide and
equally deep, which costs half of everything that is not a matrix product, and so is what is hardest to reach. Sizes and
multiply-adds stand beside the result. Each engine lives in a process of its own; they take turns, and a ratio is that
of one round. Where the time goes is from a round of its own under torch's profiler.
"""

import argparse
import importlib.util
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from measuring import alternate, described, ratio, record, run, spread, table, with_spread
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusionroute import Router
from fusionroute.models.export.export import export_team
from fusionroute.models.team import TeamModels

# One model of the team, and dense ones of the same work: widths, layers, heads
SIZES: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "200m": {
        "one": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 14, "num_attention_heads": 8},
        "grown": {"hidden_size": 640, "intermediate_size": 2944, "num_hidden_layers": 25, "num_attention_heads": 10},
        "wide": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 14, "num_attention_heads": 16},
    },
    "tiny": {
        "one": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        "grown": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 3},
        "wide": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    },
}
TEAM, DENSE = "team", ("grown", "wide")
VOCABULARIES = {"200m": 8192, "tiny": 512}
EXPERTS, CONTEXT, PROMPT = 3, 512, 32
ANSWER, PROFILE = "answer", "profile"
OPERATORS = 12  # of a profile


def llama(size: str, kind: str, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARIES[size],
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
        **SIZES[size][kind],
    )
    return LlamaForCausalLM(config)


def save_models(size: str, folder: Path) -> dict[str, dict[str, int]]:
    """An exported team and the dense models below ``folder``; parameters and multiply-adds of each."""
    lm, *experts = (llama(size, "one", seed) for seed in range(EXPERTS + 1))
    named = {f"expert{at}": expert for at, expert in enumerate(experts)}
    torch.manual_seed(7)
    router = Router(lm, EXPERTS)
    torch.nn.init.normal_(router.route_head.weight)  # all experts are asked
    TeamModels(router, named, tokenizer()).save_pretrained(folder / "saved", save_experts=True)
    export_team(folder / "saved", folder / "team")
    work = {
        "parameters": {TEAM: sum(map(in_all, (router, *experts)))},
        "multiply-adds": {
            TEAM: sum(map(in_layers, (lm, *experts))) + 2 * lm.lm_head.weight.numel() + router.route_head.weight.numel()
        },
    }
    for kind in DENSE:
        dense = llama(size, kind, 0)
        dense.save_pretrained(folder / kind)
        tokenizer().save_pretrained(folder / kind)
        work["parameters"][kind] = in_all(dense)
        work["multiply-adds"][kind] = in_layers(dense) + dense.lm_head.weight.numel()
    return work


def in_all(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def in_layers(lm: LlamaForCausalLM) -> int:
    """Weights of the matrices that every token is multiplied by: the multiply-adds of one token, without attention."""
    return sum(weight.numel() for weight in lm.model.layers.parameters() if weight.dim() == 2)


def tokenizer() -> PreTrainedTokenizerFast:
    """Of bytes; requests are token ids, so it is only there because an export has one."""
    raw = Tokenizer(models.BPE({token: at for at, token in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=raw)


class Served:
    """An engine in a process of its own, which answers all requests whenever it is called."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.pipe, theirs = (spawning := multiprocessing.get_context("spawn")).Pipe()
        self.process = spawning.Process(target=serve, args=(str(folder), options, theirs))
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def __call__(self) -> None:
        self.pipe.send(ANSWER)
        self.pipe.recv()

    def profile(self) -> list[dict[str, Any]]:
        """Operators by their share of processor time, of a round of its own."""
        self.pipe.send(PROFILE)
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


def serve(folder: str, options: argparse.Namespace, pipe: Connection) -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        dtype=options.dtype,
        enforce_eager=not options.compile,
        max_num_seqs=options.requests,
        enable_prefix_caching=False,  # every round asks the same
        skip_tokenizer_init=True,
        seed=0,
    )
    parameters = SamplingParams(temperature=0, max_tokens=options.new, ignore_eos=True, detokenize=False)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, VOCABULARIES[options.size], (options.requests, PROMPT), generator=generator).tolist()

    def answer() -> None:
        outputs = llm.generate([{"prompt_token_ids": each} for each in prompts], parameters, use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == options.new for output in outputs)

    pipe.send("ready")
    while asked := pipe.recv():
        pipe.send(profiled(answer) if asked == PROFILE else answer())


def profiled(answer: Callable[[], None]) -> list[dict[str, Any]]:
    """Operators with most time of their own, their shares of all operators' time, and how often they ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        answer()
    found = sorted(profile.key_averages(), key=lambda each: each.self_cpu_time_total, reverse=True)
    whole = sum(each.self_cpu_time_total for each in found)
    return [
        {"operator": each.key, "share": each.self_cpu_time_total / whole, "seconds": each.self_cpu_time_total / 1e6,
         "calls": each.count}
        for each in found[:OPERATORS]
    ]  # fmt: skip


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as parent:
        work = save_models(options.size, Path(parent))
        served = {kind: Served(Path(parent) / kind, options) for kind in work["parameters"]}
        seconds = alternate(dict(served), options.rounds)
        profiles = {kind: each.profile() for kind, each in served.items()}
        for each in served.values():
            each.close()
    tokens = options.requests * options.new
    per_second = {kind: [tokens / each for each in values] for kind, values in seconds.items()}
    what = {name: getattr(options, name) for name in ("size", "dtype", "compile", "requests", "new", "rounds")}
    return {
        **record(),
        "what": {**what, "prompt": PROMPT, "experts": EXPERTS, "vllm": vllm_version(), **work},
        **{
            f"team / {kind}": {
                "throughput": ratio(per_second[TEAM], per_second[kind]),
                **{name: counts[TEAM] / counts[kind] for name, counts in work.items()},
            }
            for kind in DENSE
        },
        "tokens/s": {kind: spread(values) for kind, values in per_second.items()},
        "where the time goes": profiles,
    }


def vllm_version() -> str:
    import vllm

    return str(vllm.__version__)


def render(results: dict[str, Any]) -> str:
    rows = [
        (
            f"team / {kind}",
            with_spread(results[f"team / {kind}"]["throughput"]),
            f"{results[f'team / {kind}']['multiply-adds']:.2f}",
            f"{results[f'team / {kind}']['parameters']:.2f}",
        )
        for kind in DENSE
    ]
    speeds = [(kind, with_spread(values, 0)) for kind, values in results["tokens/s"].items()]
    what = results["what"]
    about = f"vLLM {what['vllm']}, {what['requests']} requests at once, {what['new']} new tokens, {what['dtype']}"
    parts = [
        about,
        table(("what", "throughput, median (least to greatest)", "multiply-adds for a token", "parameters"), rows),
        table(("what", "tokens/s"), speeds),
        *(operators(kind, found) for kind, found in results["where the time goes"].items()),
    ]
    return "\n\n".join(parts)


def operators(kind: str, found: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (f"`{each['operator']}`", f"{100 * each['share']:.1f}", f"{each['seconds']:.2f}", each["calls"])
        for each in found
    ]
    return table((f"{kind}: operator", "% of the operators' time", "seconds", "calls"), rows)


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if importlib.util.find_spec("vllm") is None:
        parser.error("vLLM is not installed here; make test-vllm makes an environment: use .venv-vllm/bin/python")
    if options.quick:
        options.size, options.requests, options.new, options.rounds = "tiny", 4, 4, 1


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--size", choices=SIZES, default="200m")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="let vLLM compile the models, as it does by default")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    run(parser, measure, render, check)


if __name__ == "__main__":
    main()
