"""What serving a team in vLLM costs beside one dense model of the same total size: tokens per second, many requests.

    .venv-vllm/bin/python benchmarks/vllm_speed.py --output benchmarks/results/vllm_speed.json
    python benchmarks/vllm_speed.py --render benchmarks/results/vllm_speed.json

Random Llamas: a router and three experts through the plugin, against a single model with as many parameters as all four
together. Every model of the team reads every token there, so the two do about the same work; what differs is that it is
done in four smaller models, and that two LM heads are read for each token. Each engine lives in a process of its own;
they take turns, and a ratio is that of one round.
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

# One model of the team, and the dense one that has the parameters of four of them
SIZES: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "200m": {
        "one": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8},
        "dense": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 11, "num_attention_heads": 16},
    },
    "tiny": {
        "one": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        "dense": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    },
}
VOCABULARIES = {"200m": 32000, "tiny": 512}
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


def save_models(size: str, folder: Path) -> dict[str, int]:
    """An exported team and a dense model below ``folder``; parameters of both."""
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
    return {
        "team": sum(weight.numel() for model in (router, *experts) for weight in model.parameters()),
        "dense": sum(weight.numel() for weight in dense.parameters()),
    }


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
        parameters = save_models(options.size, Path(parent))
        served = {kind: Served(Path(parent) / kind, options) for kind in parameters}
        seconds = alternate(dict(served), options.rounds)
        for each in served.values():
            each.close()
    tokens = options.requests * options.new
    per_second = {kind: [tokens / each for each in values] for kind, values in seconds.items()}
    what = {name: getattr(options, name) for name in ("size", "dtype", "compile", "requests", "new", "rounds")}
    return {
        **record(),
        "what": {**what, "prompt": PROMPT, "experts": EXPERTS, "vllm": vllm_version(), "parameters": parameters},
        "team / dense": ratio(per_second["team"], per_second["dense"]),
        "tokens/s": {kind: ratio(values, [1.0] * len(values)) for kind, values in per_second.items()},
    }


def vllm_version() -> str:
    import vllm

    return str(vllm.__version__)


def render(results: dict[str, Any]) -> str:
    rows = [
        ("throughput, team in the plugin / dense model of its total size", with_spread(results["team / dense"])),
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
