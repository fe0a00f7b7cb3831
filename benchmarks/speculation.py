"""What drafting brings: tokens per second with it over those without, within one run, and what is accepted.

    python benchmarks/zoo_comparison.py train       # the trained team, once
    python benchmarks/speculation.py --team runs/zoo_comparison/team-0 --output benchmarks/results/speculation.json
    python benchmarks/speculation.py --render benchmarks/results/speculation.json

Three parts. *zoo*: the trained team on unseen test questions, one at a time and sixteen at once, greedily and sampled,
by each drafter, at fixed lengths and adapting. *large experts*: the same team, whose experts are made wider by copies
of their neurons that share the work between them: every logit stays what it was, so acceptance is real, and an expert
has several times the weights of the router. *hopeless*: random models, of which a draft is right by chance alone, so
that all drafting can do is not to be in the way.

Candidates alternate and must write the same tokens; ratios are those within a round, of processor time, since all run
on one thread (with several, of the clock). Coupled draws are our price for tokens that do not depend on the drafter:
what they accept stands beside the optimum, Σ min(p, q), of accept/resample.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from measuring import described, part, ratio, record, run, table, timed, with_spread
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fusionroute import GenerationSettings, Router
from fusionroute.engine.choice import choose_tokens
from fusionroute.engine.engine import Engine
from fusionroute.engine.sequence import Completion
from fusionroute.engine.sequence import Sequence as Answer
from fusionroute.engine.speculation import SpeculationSettings, new_pace
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.team import TeamModels
from fusionroute.zoo.build import weights_folder
from fusionroute.zoo.contest import DECODING, unseen
from fusionroute.zoo.team import EXPERTS, PROMPT, ROUTER_START

OFF = "off"
DECODINGS = {
    "greedy": DECODING,
    "temperature 1": DECODING.model_copy(update={"do_sample": True, "temperature": 1.0, "seed": 5}),
    "temperature 0.7": DECODING.model_copy(update={"do_sample": True, "temperature": 0.7, "seed": 5}),
}
UNTRAINED = Path("untrained")
WIDER = [4, 16]  # times the neurons: so that the router is about a quarter of an expert, and a fourteenth


class Candidate:
    """A way of drafting; what it has learnt in one round it knows in the next.

    Args:
        draft_model: live, for the drafter ``model``.
    """

    def __init__(self, models: Any, draft_model: PreTrainedModel | None = None, **options: Any):
        self.models, self.draft_model = models, draft_model
        name = {"model": "a draft model"} if draft_model is not None else {}
        self.settings = SpeculationSettings.parse({**options, **name}) if options else None
        self.pace = new_pace(self.settings) if self.settings else None
        self.completions: list[Completion] = []
        self.method: FusionRoute | None = None

    def write(self, prompts: Sequence[list[int]], settings: GenerationSettings, batch: int) -> None:
        speculation, model = self.settings, self.draft_model
        self.method = FusionRoute(self.models, speculation=speculation, draft_model=model, pace=self.pace)
        self.completions = Engine(self.method, max_batch=batch).generate(prompts, settings)

    @property
    def tokens(self) -> list[list[int]]:
        return [completion.token_ids for completion in self.completions]

    def spent(self) -> dict[str, Any]:
        """Of the last round."""
        assert self.method is not None
        written = sum(map(len, self.tokens))
        passes = {runner.name: runner.passes / written for runner in self.method.runners}
        drafted = self.method.drafted
        if drafted is None:
            return {"tokens": written, "passes per token": passes}
        kept = self.method.kept
        return {
            "tokens": written,
            "drafted per token": drafted / written,
            "accepted share": kept / drafted if drafted else None,
            "passes per token": passes,
        }


def lineup(models: Any, draft_model: PreTrainedModel, lengths: Sequence[int]) -> dict[str, Candidate]:
    """Off, and every drafter adapting and at fixed lengths: the router at all, the others at the middle one."""
    made = {OFF: Candidate(models)}
    middle = sorted(lengths)[len(lengths) // 2]
    for drafter, model in (("router", None), ("ngram", None), ("model", draft_model)):
        for length in lengths if drafter == "router" else [middle]:
            made[f"{drafter}, {length}"] = Candidate(models, model, drafter=drafter, max_draft=length, adaptive=False)
        made[f"{drafter}, adaptive"] = Candidate(models, model, drafter=drafter)
    return made


def compared(
    candidates: dict[str, Candidate],
    prompts: Sequence[list[int]],
    settings: GenerationSettings,
    batch: int,
    rounds: int,
) -> dict[str, Any]:
    """Tokens per second over those of `OFF` by candidate; the first round, in which they learn, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for at in range(rounds + 1):
        for name, candidate in candidates.items():
            write = partial(candidate.write, prompts, settings, batch)
            taken = timed(write, time.process_time if torch.get_num_threads() == 1 else time.perf_counter)
            assert candidate.tokens == candidates[OFF].tokens, f"{name} has changed what is written"
            if at:
                seconds[name].append(taken)
    return {
        name: {"tokens/s with / without": ratio(seconds[OFF], seconds[name]), **candidate.spent()}
        for name, candidate in candidates.items()
    }


def zoo(team: TeamModels, prompts: list[list[int]], options: argparse.Namespace) -> dict[str, Any]:
    """The model that drafts is an expert, since the zoo has none that is smaller."""
    draft_model = next(iter(team.experts.values()))
    found: dict[str, Any] = {}
    for batch, (decoding, settings) in itertools.product((1, 16), list(DECODINGS.items())[:2]):
        some = prompts[: max(1, len(prompts) // 4)] if batch == 1 else prompts
        candidates = lineup(team, draft_model, options.lengths)
        found[f"batch {batch}, {decoding}"] = compared(candidates, some, settings, batch, options.rounds)
    return found


def coupling(team: TeamModels, prompts: list[list[int]]) -> dict[str, Any]:
    """Of the router's own next token, along the team's answers: the share accepted, and the most that could be."""
    return {name: _coupled(team, prompts, settings) for name, settings in DECODINGS.items() if settings.do_sample}


def _coupled(team: TeamModels, prompts: list[list[int]], settings: GenerationSettings) -> dict[str, float]:
    method = FusionRoute(team)
    engine = Engine(method, max_batch=len(prompts))
    answers = [engine.submit(prompt, settings) for prompt in prompts]
    equal, overlap = list[bool](), list[float]()
    while not engine.is_idle:
        engine.scheduler.admit()
        running = engine.running
        with torch.inference_mode():
            router, fused = _said(method, running)
            drafted = choose_tokens(router, running).tolist()
            shared = torch.minimum(*((each / (settings.temperature or 1)).softmax(-1) for each in (router, fused)))
        lengths = [len(answer) for answer in running]
        engine.step()
        equal += [a.token_ids[at] == token for a, at, token in zip(running, lengths, drafted, strict=True)]
        overlap += shared.sum(-1).tolist()
    assert all(answer.is_finished for answer in answers)
    count = len(equal)
    return {"tokens": count, "accepted, coupled": sum(equal) / count, "optimum": sum(overlap) / count}


def _said(method: FusionRoute, running: Sequence[Answer]) -> tuple[torch.Tensor, torch.Tensor]:
    """The router's and the fused logits of the next token, ``[sequences, vocabulary]``."""
    reading = method.router.read(running)
    assert reading.route_logits is not None
    fused = method.log_probabilities(running)[:, -1]
    return reading.logits[:, -1].float(), fused


def widened(model: PreTrainedModel, times: int) -> PreTrainedModel:
    """The same function with ``times`` the heads and neurons: copies, of which each gives its share of the output.

    The residual stream stays as wide as it is, of which the number of heads is a divisor; so ``times`` is a power of 2.
    """
    old = model.config
    config = LlamaConfig.from_dict(
        {
            **old.to_dict(),
            "intermediate_size": times * old.intermediate_size,
            "num_attention_heads": times * old.num_attention_heads,
            "num_key_value_heads": times * old.num_key_value_heads,
            "head_dim": old.hidden_size // old.num_attention_heads,
        }
    )
    wide = LlamaForCausalLM(config).to(model.dtype).eval()
    weights = dict(model.state_dict())
    for name, weight in weights.items():
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            weights[name] = weight.repeat(times, 1)
        elif kind in ("o_proj", "down_proj"):
            weights[name] = weight.repeat(1, times) / times
    wide.load_state_dict(weights)
    wide.generation_config = model.generation_config
    return wide


def parameters(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def large_experts(team: TeamModels, prompts: list[list[int]], options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    some = prompts[: max(1, len(prompts) // 4)]
    for times, (decoding, settings) in itertools.product(options.wider, list(DECODINGS.items())[:2]):
        experts = {name: widened(expert, times) for name, expert in team.experts.items()}
        models = TeamModels(team.router, experts, team.tokenizer, team.prompt)
        size = parameters(next(iter(experts.values()))) / parameters(team.router)
        candidates = {OFF: Candidate(models), "router, adaptive": Candidate(models, drafter="router")}
        for length in options.lengths:
            candidates[f"router, {length}"] = Candidate(models, drafter="router", max_draft=length, adaptive=False)
        found[f"{size:.1f} times the router, {decoding}"] = compared(candidates, some, settings, 1, options.rounds)
    return found


class Random:
    """What a method needs of a team; random models have no tokenizer."""

    eos_ids: frozenset[int] = frozenset()
    context_length = 2048

    def __init__(self) -> None:
        config = LlamaConfig(
            vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
            initializer_range=0.1, bos_token_id=None, eos_token_id=None, max_position_embeddings=2048,
        )  # fmt: skip
        models = []
        for seed in range(5):
            torch.manual_seed(seed)
            models.append(LlamaForCausalLM(config).eval())
        self.draft_model, router, *experts = models
        self.router = Router(router, len(experts)).eval()
        self.experts = {f"expert{at}": expert for at, expert in enumerate(experts)}


def hopeless(options: argparse.Namespace) -> dict[str, Any]:
    """Sampled from random models: nothing is copied, and nobody guesses what another draws."""
    models = Random()
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, 512, (16, 32), generator=generator).tolist()
    settings = GenerationSettings(max_new_tokens=options.new, do_sample=True, seed=2)
    found = {}
    for batch in (1, 16):
        candidates = {OFF: Candidate(models)}
        for drafter, model in (("router", None), ("ngram", None), ("model", models.draft_model)):
            candidates[f"{drafter}, adaptive"] = Candidate(models, model, drafter=drafter)
        found[f"batch {batch}, temperature 1"] = compared(
            candidates, prompts[: max(2, batch)], settings, batch, 4 * options.rounds
        )
    return found


def untrained() -> TeamModels:
    """The zoo's experts and a router that has not learnt to choose: enough to try this script."""
    experts = {name: load_model(weights_folder(name)) for name in EXPERTS}
    router = Router(load_model(weights_folder(ROUTER_START)), len(experts)).eval()
    return TeamModels(router, experts, load_tokenizer(weights_folder(ROUTER_START)), PROMPT)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    transformers.logging.disable_progress_bar()
    team = untrained() if options.team == UNTRAINED else TeamModels.from_pretrained(options.team)
    prompts = [team.prompt_format.encode(each.prompt) for task in unseen(options.questions).values() for each in task]
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "zoo": lambda: zoo(team, prompts, options),
        "large experts": lambda: large_experts(team, prompts, options),
        "hopeless": lambda: hopeless(options),
        "coupling": lambda: coupling(team, prompts),
    }
    return {
        **record(),
        "what": {
            "team": str(options.team),
            "questions of each task": options.questions,
            "rounds": options.rounds,
            "threads": options.threads,
        },
        **{label: part(label, measure_it) for label, measure_it in parts.items()},
    }


def render(results: dict[str, Any]) -> str:
    rows = []
    for label in ("zoo", "large experts", "hopeless"):
        for case, found in results[label].items():
            rows += [_row(f"{label}, {case}", name, each) for name, each in _drafting(found)]
    lines = [table(["what", "drafter, γ", "tokens/s with / without", "accepted", "passes per token"], rows), ""]
    for name, each in results["coupling"].items():
        lines.append(
            f"Router's own tokens at {name}: {100 * each['accepted, coupled']:.1f} % accepted by equal random numbers, "
            f"{100 * each['optimum']:.1f} % at most ({each['tokens']} tokens)."
        )
    return "\n".join(lines)


def _drafting(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, each) for name, each in found.items() if name != OFF]


def _row(label: str, name: str, found: dict[str, Any]) -> list[str]:
    share = found["accepted share"]
    return [
        label,
        name,
        with_spread(found["tokens/s with / without"]),
        "" if share is None else f"{100 * share:.0f} %",
        ", ".join(f"{model} {count:.2f}" for model, count in found["passes per token"].items()),
    ]


def main() -> None:
    parser = described(__doc__)
    parser.add_argument(
        "--team", type=Path, default=Path("runs/zoo_comparison/team-0"), help=f"a folder, or {UNTRAINED}: just to try"
    )
    parser.add_argument("--questions", type=int, default=16, help="of each of the zoo's seven tasks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 8, 16], help="fixed lengths of drafts")
    parser.add_argument("--wider", type=int, nargs="+", default=WIDER, help="times the neurons of the large experts")
    parser.add_argument("--new", type=int, default=192, help="tokens of an answer of random models")
    parser.add_argument("--threads", type=int, default=1)
    run(parser, measure, render)


if __name__ == "__main__":
    main()
