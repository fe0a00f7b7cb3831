"""What serving a team in vLLM costs beside one dense model of the same work: tokens per second, many requests.

    .venv-vllm/bin/python benchmarks/vllm_speed.py --output benchmarks/results/vllm_speed.json
    python benchmarks/vllm_speed.py --render benchmarks/results/vllm_speed.json

Random Llamas: a router and three experts through the plugin, against a single model of twice their width and equal
depth. Every model of the team reads every token there and two LM heads are read, so the matrices of both multiply the
same numbers for each token that is written; what the team has besides, embeddings that are looked up and heads of
experts that are not asked, makes it a little larger. (Attention itself costs four models twice what it costs one.) The
sizes and the multiply-adds stand beside the result. Each engine lives in a process of its own; they take turns, and a
ratio is that of one round.
"""

import argparse
import importlib.util
import multiprocessing
import os
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from measuring import alternate, described, ratio, record, run, table, with_spread
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusionroute import Router
from fusionroute.models.export import export_team
from fusionroute.models.team import TeamModels

# One model of the team, and the dense one, of twice its width: layers of four times and a head of twice as many weights
SIZES: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "200m": {
        "one": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 14, "num_attention_heads": 8},
        "dense": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 14, "num_attention_heads": 16},
    },
    "tiny": {
        "one": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        "dense": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    },
}
VOCABULARIES = {"200m": 8192, "tiny": 512}
EXPERTS, CONTEXT, PROMPT = 3, 512, 32


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
    """An exported team and a dense model below ``folder``; parameters and multiply-adds of both."""
    lm, *experts = (llama(size, "one", seed) for seed in range(EXPERTS + 1))
    named = {f"expert{at}": expert for at, expert in enumerate(experts)}
    torch.manual_seed(7)
    router = Router(lm, EXPERTS)
    torch.nn.init.normal_(router.route_head.weight)  # all experts are asked
    TeamModels(router, named, tokenizer()).save_pretrained(folder / "saved", save_experts=True)
    export_team(folder / "saved", folder / "team")
    dense = llama(size, "dense", 0)
    dense.save_pretrained(folder / "dense")
    tokenizer().save_pretrained(folder / "dense")
    layers = {"team": sum(map(in_layers, (lm, *experts))), "dense": in_layers(dense)}
    heads = {
        "team": 2 * lm.lm_head.weight.numel() + router.route_head.weight.numel(),
        "dense": dense.lm_head.weight.numel(),
    }
    return {
        "parameters": {"team": sum(map(in_all, (router, *experts))), "dense": in_all(dense)},
        "multiply-adds": {kind: layers[kind] + heads[kind] for kind in layers},
    }


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
        self.pipe.send("answer")
        self.pipe.recv()

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
    pipe.send("ready")
    while pipe.recv():
        outputs = llm.generate([{"prompt_token_ids": each} for each in prompts], parameters, use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == options.new for output in outputs)
        pipe.send("answered")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as parent:
        work = save_models(options.size, Path(parent))
        served = {kind: Served(Path(parent) / kind, options) for kind in work["parameters"]}
        seconds = alternate(dict(served), options.rounds)
        for each in served.values():
            each.close()
    tokens = options.requests * options.new
    per_second = {kind: [tokens / each for each in values] for kind, values in seconds.items()}
    what = {name: getattr(options, name) for name in ("size", "dtype", "compile", "requests", "new", "rounds")}
    return {
        **record(),
        "what": {**what, "prompt": PROMPT, "experts": EXPERTS, "vllm": vllm_version(), **work},
        "team / dense, multiply-adds for a token": work["multiply-adds"]["team"] / work["multiply-adds"]["dense"],
        "team / dense, parameters": work["parameters"]["team"] / work["parameters"]["dense"],
        "team / dense": ratio(per_second["team"], per_second["dense"]),
        "tokens/s": {kind: ratio(values, [1.0] * len(values)) for kind, values in per_second.items()},
    }


def vllm_version() -> str:
    import vllm

    return str(vllm.__version__)


def render(results: dict[str, Any]) -> str:
    rows = [
        ("throughput, team in the plugin / dense model of equal work", with_spread(results["team / dense"])),
        *(
            (f"{what}, team / dense", f"{results[f'team / dense, {what}']:.2f}")
            for what in ("multiply-adds for a token", "parameters")
        ),
        *((f"tokens/s, {kind}", with_spread(values, 0)) for kind, values in results["tokens/s"].items()),
    ]
    what = results["what"]
    about = f"vLLM {what['vllm']}, {what['requests']} requests at once, {what['new']} new tokens, {what['dtype']}"
    return f"{about}\n\n{table(('what', 'median (least to greatest)'), rows)}"


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
