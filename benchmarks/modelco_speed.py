"""Averaging two models, against `LogitArithmetic` of modelco 1.1.2: the same models, the same prompt, the same tokens.

    python benchmarks/modelco_speed.py --output benchmarks/results/modelco_speed.json
    python benchmarks/modelco_speed.py --render benchmarks/results/modelco_speed.json

Both take the token that the mean of the models' logits ranks first; ours is `averaging` in the space of
log-probabilities, which differ from logits by one number per model. The tokens are compared, and without equality
there is no figure. modelco lives in an environment of its own, which the first run makes; it has the torch that is
used here and whatever else modelco asks for by the versions it asks for. Where that cannot be installed the benchmark
says so and writes nothing. The two alternate, so that a machine whose speed drifts slows both.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusionroute import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.environment import machine, versions
from fusionroute.methods.averaging import Averaging
from fusionroute.output import write_json

PEER = "modelco==1.1.2"
NEEDS = ("transformers==5.15.0", "tqdm==4.67.1")  # of its 130 requirements those that LogitArithmetic imports
ENVIRONMENT = Path(__file__).parents[1] / "runs" / "environments" / PEER.replace("==", "-")
WORKER = Path(__file__).with_name("modelco_worker.py")
SIZES: dict[str, dict[str, int]] = {
    "20m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
VOCABULARY, PROMPT, EOS, WARM_UP = 8192, 32, 0, 8


class NotInstalledError(Exception):
    """The other package cannot be had; the message is the reason."""


def environment(folder: Path) -> Path:
    """The Python of an environment with the other package; made if it is not there.

    Raises:
        NotInstalledError: pip could not install it.
    """
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, clear=True)
        # its own torch brings CUDA with it; a comparison needs the same one on both sides anyway
        same_torch = f"torch=={torch.__version__.partition('+')[0]}"
        for arguments in (["--no-deps", PEER], [same_torch, *NEEDS]):
            print(f"installing {' '.join(arguments)} in {folder.name} ...", flush=True)
            pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
            run = subprocess.run([*pip, "install", *arguments], capture_output=True, text=True, check=False)
            if run.returncode:
                lines = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or [run.stderr.strip()]
                raise NotInstalledError(lines[-1].removeprefix("ERROR: "))
        (folder / "complete").touch()
    return python


def save_models(folder: Path, size: str, count: int = 2) -> list[Path]:
    """Random models of one vocabulary and their tokenizer; none ever writes the end of the answer.

    The weights are those of bfloat16, which modelco loads, so that in float32 they are the same on both sides.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=2048, bos_token_id=None, eos_token_id=EOS,
        initializer_range=0.05, **SIZES[size],
    )  # fmt: skip
    places = [folder / f"model{seed}" for seed in range(count)]
    for seed, place in enumerate(places):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        with torch.no_grad():
            model.lm_head.weight[EOS].zero_()  # its logit is 0, and the largest of thousands is above that
        model.save_pretrained(place)
    words = {f"t{at}": at for at in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "t1")), eos_token=f"t{EOS}")
    tokenizer.save_pretrained(folder / "tokenizer")
    return places


def prompt() -> list[int]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(EOS + 1, VOCABULARY, (PROMPT,), generator=generator).tolist()


class Ours:
    """Averaging of models in this process."""

    def __init__(self, places: list[Path]):
        models = [LlamaForCausalLM.from_pretrained(place, dtype=torch.float32).eval() for place in places]
        self.models = {place.name: model for place, model in zip(places, models, strict=True)}

    def complete(self, ids: list[int], new: int) -> tuple[list[int], float]:
        """New token ids and seconds, with nothing kept from an earlier answer."""
        start = time.perf_counter()
        engine = Engine(Averaging(self.models, space="log_probabilities"), max_batch=1)
        (answer,) = engine.generate([ids], GenerationSettings(max_new_tokens=new, ignore_eos=True))
        return answer.token_ids, time.perf_counter() - start


class Theirs:
    """`LogitArithmetic` in a process of the other environment; it loads its models once."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]):
        self.process, self.errors = process, errors
        self.ready = self._answer()

    def complete(self, ids: list[int], new: int) -> tuple[list[int], float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"ids": ids, "new": new}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["ids"], answer["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"modelco ended without an answer:\n{self.errors.read()[-2000:]}")
        return json.loads(line)


@contextlib.contextmanager
def theirs(python: Path, folder: Path, places: list[Path]) -> Iterator[Theirs]:
    command = [str(python), str(WORKER), str(folder / "tokenizer"), *map(str, places)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        ) as process,
    ):
        try:
            yield Theirs(process, errors)
        finally:
            process.kill()


def measure(python: Path, size: str, new: int, rounds: int) -> dict[str, Any]:
    """Seconds of both in every round, after a short unmeasured one.

    Raises:
        SystemExit: they wrote different tokens, or modelco failed.
    """
    seconds: dict[str, list[float]] = {"fusionroute": [], "modelco": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = save_models(folder, size)
        ours = Ours(places)
        with theirs(python, folder, places) as peer:
            for candidate in (ours, peer):
                candidate.complete(prompt(), WARM_UP)
            for at in range(rounds):
                written, spent = ours.complete(prompt(), new)
                others, their_spent = peer.complete(prompt(), new)
                insist_equal(written, others)
                seconds["fusionroute"].append(spent)
                seconds["modelco"].append(their_spent)
                print(f"round {at + 1}: {spent:.1f} s, modelco {their_spent:.1f} s", flush=True)
            ready = peer.ready
    return {
        "what": {
            "models": f"two random Llamas, {size}, float32, greedy, one sequence",
            "parameters of each": sum(p.numel() for p in next(iter(ours.models.values())).parameters()),
            "prompt": PROMPT,
            "new tokens": new,
            "rounds": rounds,
            "modelco": "LogitArithmetic.generate, put into inference mode (which it does not do by itself)",
            "torch threads": {"fusionroute": torch.get_num_threads(), "modelco": ready["threads"]},
        },
        "versions": {"fusionroute": versions(), "modelco": ready["versions"]},
        "machine": machine(),
        "equal tokens": len(written),
        "different tokens among them": len(set(written)),
        "seconds": {name: {"median": statistics.median(values), "each": values} for name, values in seconds.items()},
        "time of modelco / of fusionroute": ratio(seconds["modelco"], seconds["fusionroute"]),
    }


def insist_equal(ours: list[int], others: list[int]) -> None:
    if ours != others:
        pairs = list(zip(ours, others, strict=False))
        equal = next((at for at, (mine, other) in enumerate(pairs) if mine != other), len(pairs))
        raise SystemExit(
            f"the two wrote different tokens, so their times say nothing: equal up to token {equal} of {len(ours)} "
            f"(modelco wrote {len(others)})"
        )


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    each = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def render(results: dict[str, Any]) -> str:
    new, found = results["what"]["new tokens"], results["time of modelco / of fusionroute"]
    lines = [f"| {new} tokens, both the same | seconds, median | ms per token |", "|---|---|---|"]
    for name, spent in results["seconds"].items():
        lines.append(f"| {name} | {spent['median']:.1f} | {1000 * spent['median'] / new:.1f} |")
    lines.append(
        f"| ratio (min to max of rounds) | {found['median']:.1f} ({found['min']:.1f} to {found['max']:.1f}) | |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--render", type=Path, help="print a finished result as a table")
    parser.add_argument("--quick", action="store_true", help="tiny models, 64 tokens, one round: does it work?")
    parser.add_argument("--new", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--environment", type=Path, default=ENVIRONMENT, help="where modelco is, or is to be, installed"
    )
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    if options.render:
        print(render(json.loads(options.render.read_text())))
        return
    if options.output is None or (options.output.exists() and not options.overwrite):
        parser.error("give --output FILE; a file that exists needs --overwrite")
    try:
        python = environment(options.environment)
    except NotInstalledError as reason:
        print(f"skipped: cannot install {PEER.replace('==', ' ')} ({reason})")
        return
    size, new, rounds = ("tiny", 64, 1) if options.quick else ("20m", options.new, options.rounds)
    results = measure(python, size, new, rounds)
    write_json(options.output, results)
    print(render(results), f"\n\nwritten to {options.output}")


if __name__ == "__main__":
    main()
