"""What is measured, as two tables: the scripts with how they are run, and the figures that are read from their results.

A row says where its figure stands in the committed result of its script, and what is to be reached.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]


@dataclass(frozen=True)
class Need:
    """A file that must be there, below the repository's root, and how one gets it."""

    path: str
    remedy: str


@dataclass(frozen=True)
class Script:
    """``benchmarks/NAME.py``, which writes ``benchmarks/results/NAME.json``.

    Attributes:
        quick: arguments with which it only proves that it still runs.
        full: arguments of the published measurement.
        needs: without them it is skipped; ``needs_quick`` are those of the quick run.
        python: that of another environment, below the root; None is the one that runs this.
        is_on_request: only run where it is named: it belongs on another machine, or takes hours.
    """

    name: str
    quick: str
    full: str = ""
    needs: tuple[Need, ...] = ()
    needs_quick: tuple[Need, ...] = ()
    python: str | None = None
    is_on_request: bool = False


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        read: the figure of a result: a number, or a mapping with its spread; see `speed_table.figure`.
        target: ``≤ 1.00`` or ``≥ 10``; empty where nothing is to be reached.
        is_headline: shown in the README.
    """

    what: str
    script: str
    read: Callable[[Results], Any]
    target: str = ""
    is_headline: bool = False


def at(*keys: str) -> Callable[[Results], Any]:
    """The value behind ``keys``, one after another."""

    def read(results: Results) -> Any:
        for key in keys:
            results = results[key]
        return results

    return read


def read_by_experts(trace: str) -> Callable[[Results], float]:
    """Tokens that all experts together read for each token written."""

    def read(results: Results) -> float:
        counts = results["one stream, 3 experts"][trace]["tokens read per output token"]
        return sum(count for name, count in counts.items() if name != "router")

    return read


def worst_of_hopeless(results: Results) -> Any:
    """The drafter that is most in the way where nothing is accepted."""
    found = [
        each["tokens/s with / without"]
        for case in results["hopeless"].values()
        for name, each in case.items()
        if name != "off"
    ]
    return min(found, key=lambda each: each["median"])


def quarter_of_the_experts(results: Results) -> Any:
    """Of the cases named ``N times the router, greedy`` the one whose experts are nearest to four times the router."""
    cases = {name: case for name, case in results["large experts"].items() if name.endswith(", greedy")}
    nearest = min(cases, key=lambda name: abs(float(name.split()[0]) - 4))
    return cases[nearest]["router, adaptive"]["tokens/s with / without"]


TEAM = Need("runs/zoo_comparison/team-0/team.json", "python benchmarks/zoo_comparison.py train")
MODELCO = Need("runs/environments/modelco-1.1.2/complete", "python benchmarks/run.py --only modelco_speed")
VLLM = Need(".venv-vllm/bin/python", "make test-vllm")

SCRIPTS = (
    Script("engine_speed", quick="--size tiny --new 8 --rounds 1"),
    Script("bandwidth", quick="--size tiny --new 8 --rounds 1 --buffer 64"),
    Script("profile_step", quick="--size tiny --new 8 --rounds 1"),
    Script("scaling", quick="--quick --new 4 --rounds 1", full="--picture docs/images/scaling.svg"),
    Script(
        "speculation",
        quick="--team untrained --questions 1 --rounds 1 --lengths 2 --wider 2 --new 8",
        needs=(TEAM,),
    ),
    Script("prompts", quick="--size tiny --shared-size tiny --requests 4 --shared 64 --long 128 --chunk 32 --rounds 1"),
    Script("safe_speed", quick="--size tiny --new 8 --questions 2 --rounds 1", full="--questions 8"),
    Script("modelco_speed", quick="--quick", needs_quick=(MODELCO,)),
    Script("vllm_speed", quick="--quick", needs=(VLLM,), needs_quick=(VLLM,), python=VLLM.path),
    Script("serving", quick="--team random --new 4 --rounds 1 --each 1 --clients 1 16 --size tiny", needs=(TEAM,)),
    Script(
        "serving_soak", quick="--team random --seconds 5 --clients 4 --every 0.15", needs=(TEAM,), is_on_request=True
    ),
    Script("lora_memory", quick="--size tiny --new 8 --rounds 1"),
    Script("sft_step", quick="--size tiny --rounds 1"),
    Script("roma_speed", quick="--size tiny --rounds 2"),
    Script("gpu", quick="--size tiny --device cpu --new 4 --rounds 1 --batch 4", is_on_request=True),
)

ONE_STREAM, SHARE = "one stream, 3 experts", "share of bandwidth"
ALONE, WITH = "time per token / drafter alone", "tokens/s with / without"
ROWS = (
    Row(
        "one stream, 3 experts, greedy, one writes: time per token ÷ (router + expert by `generate`)",
        "engine_speed", at(ONE_STREAM, "steady", "fused / (router + expert)"), "≤ 1.00", True,
    ),
    Row("the same, sampled, experts take turns", "engine_speed",
        at(ONE_STREAM, "restless", "fused / (router + expert)"), "≤ 1.00", True),
    Row("time per token with 8 experts ÷ with 2, same routing trace", "engine_speed",
        at("number of experts", "8 experts / 2 experts"), "≤ 1.05", True),
    Row("tokens/s at 16 sequences ÷ at 1, bfloat16, one expert writes", "engine_speed",
        at("batch, bfloat16", "steady", "tokens/s at 16 / at 1"), "≥ 10", True),
    Row("the same, experts take turns", "engine_speed", at("batch, bfloat16", "restless", "tokens/s at 16 / at 1")),
    Row("tokens/s at 16 sequences ÷ at 1, float32, one expert writes", "engine_speed",
        at("batch, float32", "steady", "tokens/s at 16 / at 1"), "≥ 5", True),
    Row("the same, experts take turns", "engine_speed", at("batch, float32", "restless", "tokens/s at 16 / at 1")),
    Row("tokens read per output token: router", "engine_speed",
        at(ONE_STREAM, "restless", "tokens read per output token", "router"), "≤ 1.00"),
    Row("tokens read per output token: all experts together, taking turns", "engine_speed",
        read_by_experts("restless"), "≤ 2.00", True),
    Row("share of the read bandwidth, one stream, float32: team", "bandwidth",
        at("float32", "team, our engine", SHARE), "≥ 0.75"),
    Row("the same, one model in our engine", "bandwidth", at("float32", "one model, our engine", SHARE), "≥ 0.75"),
    Row("the same, its matrix products alone", "bandwidth",
        at("float32", "one model, its matrix products alone", SHARE)),
    Row("the same, one model by `generate`", "bandwidth", at("float32", "one model, transformers.generate", SHARE)),
    Row("share of the read bandwidth, one stream, bfloat16: team", "bandwidth",
        at("bfloat16", "team, our engine", SHARE), "≥ 0.75"),
    Row("the same, one model's matrix products alone", "bandwidth",
        at("bfloat16", "one model, its matrix products alone", SHARE)),
    Row("share of a step outside the models' forward passes, 1 sequence", "profile_step",
        at("1 sequence", "share outside forward passes"), "≤ 0.08"),
    Row("the same, 16 sequences", "profile_step", at("16 sequences", "share outside forward passes"), "≤ 0.08"),
    Row("time per token with 16 experts ÷ with 2, same routing trace", "scaling",
        at("number of experts", "time per token with most / with fewest")),
    Row("32 requests that share 1,000 tokens: time to the last first token without reuse ÷ with", "prompts",
        at("shared prefix", "first token without / with"), is_headline=True),
    Row("a 4,000-token prompt arrives while 8 answers are written: largest gap of theirs ÷ a step", "prompts",
        at("long prompt", "in parts", "largest gap / ordinary step"), "≤ 3"),
    Row("the same, 95 % of the gaps", "prompts", at("long prompt", "in parts", "95 % of gaps / ordinary step")),
    Row("the same, the largest where nothing arrives", "prompts",
        at("long prompt", "without it", "largest gap / ordinary step")),
    Row("the same, the largest, read at once", "prompts", at("long prompt", "at once", "largest gap / ordinary step")),
    Row("speculation by the router, trained zoo team, greedy, same tokens: tokens/s with ÷ without", "speculation",
        at("zoo", "batch 1, greedy", "router, adaptive", WITH), "≥ 1.5", True),
    Row("the same, 16 at once", "speculation", at("zoo", "batch 16, greedy", "router, adaptive", WITH), "≥ 1.5", True),
    Row("the same, one at a time, a router of about a quarter of the experts' size", "speculation",
        quarter_of_the_experts, "≥ 2"),
    Row("speculation where drafts are right by chance alone, the worst drafter: tokens/s with ÷ without", "speculation",
        worst_of_hopeless, "≥ 0.95"),
    Row("SAFE (UniTE), zoo pair with different tokenizers: time per token ÷ drafter alone", "safe_speed",
        at("zoo", "UniTE+SAFE, two models", ALONE), "≤ 1.3"),
    Row("the same, SAFE (GaC)", "safe_speed", at("zoo", "GaC+SAFE, two models", ALONE), "≤ 1.3"),
    Row("averaging two models, 768 tokens: time of modelco's `LogitArithmetic` ÷ ours, same tokens", "modelco_speed",
        at("time of modelco / of fusionroute"), "≥ 10"),
    Row("vLLM plugin, 64 requests at once: throughput ÷ one dense model of equal work in vLLM, shaped as real ones",
        "vllm_speed", at("team / grown", "throughput"), "≥ 0.9", True),
    Row("the same, a dense model twice as wide and no deeper", "vllm_speed", at("team / wide", "throughput"), "≥ 0.9"),
    Row("server: tokens/s of 16 clients ÷ of one", "serving", at("speed", "tokens/s against one client", "16"), "≥ 5"),
    Row("server: tokens/s of 16 clients ÷ the engine alone", "serving",
        at("speed", "clients", "16", "server / engine alone")),
    Row("server: memory of seven model ids ÷ of one", "serving",
        at("memory", "ratios, process growth", "all ids, shared / one id")),
    Row("server: growth of its memory in ten minutes of mixed traffic, share", "serving_soak",
        at("growth in ten minutes, share")),
    Row("memory of three LoRA experts ÷ one model", "lora_memory",
        at("ratios", "adapters / one model", "process growth")),
    Row("time per token of LoRA experts ÷ merged ones", "lora_memory", at("speed", "adapters / merged")),
    Row("scored SFT step ÷ `transformers.Trainer` step of the same LM", "sft_step",
        at("processor time", "scored / plain"), "≤ 1.10"),
    Row("the same, peak memory beyond the model", "sft_step", at("peak memory", "scored / plain")),
    Row("RoMA: training step ÷ plain router tuning", "roma_speed", at("RoMA step / router tuning step"), "≤ 1.10"),
    Row("RoMA: inference after ÷ before", "roma_speed", at("inference after / before"), "≤ 1.00"),
)  # fmt: skip
