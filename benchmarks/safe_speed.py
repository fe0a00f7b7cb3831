"""What SAFE costs beside its drafter alone: ratios inside one run, one stream, written to a JSON file with versions.

    python benchmarks/safe_speed.py --output benchmarks/results/safe_speed.json
    python benchmarks/safe_speed.py --render benchmarks/results/safe_speed.json

Two pairs. The zoo's, with its own tokenizers, on its long answers, where SAFE decides itself what to ensemble. And two
random Llamas of 200M parameters with two kinds of tokenizer trained here on the same made-up words: they agree on
nothing, so the first place with a shared boundary in every twenty tokens is ensembled, which makes 5 %; drafting,
retokenising, verifying and the host itself are real. Candidates take turns at every prompt; what is reported is the
median, over prompts and rounds, of the ratio of times per token, with the quartiles. The zoo's models are so small that
a second thread has nothing to do: they get one.
"""

import argparse
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from engine_speed import SIZES
from measuring import described, part, quartiles, record, run
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusionroute import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.sequence import ENSEMBLED, Completion
from fusionroute.methods.averaging.every_token import AveragingAcross
from fusionroute.methods.safe import Safe
from fusionroute.methods.safe.verification import Check
from fusionroute.methods.single import Single
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.member import Member
from fusionroute.zoo.build import weights_folder
from fusionroute.zoo.tasks import examples

ZOO = ("byte_bpe", "piece_bpe", "unigram")
SHARE = 0.05
RANDOM_PROMPTS = 3


class Contestant:
    """A method that answers prompts one at a time, and counts what that took."""

    def __init__(self, method: Any, drafter: Member, prompts: list[str], new: int, *, ends: bool):
        self.method, self.drafter, self.prompts = method, drafter, prompts
        self.settings = GenerationSettings(max_new_tokens=new, ignore_eos=not ends)
        self.answers: dict[int, Completion] = {}
        self.tokens_read: Counter[str] = Counter()
        self.written = self.drafted = self.kept = 0

    def __call__(self, at: int) -> float:
        """Seconds per token of the answer to that prompt."""
        engine = Engine(self.method, self.drafter.pieces.tokenizer)
        before = Counter({runner.name: runner.tokens_read for runner in self.method.runners})
        drafted, kept = self._counted()
        prompt = self.prompts[at]
        start = time.perf_counter()
        (answer,) = engine.generate([self.drafter.prompt.encode(prompt)], self.settings, unrendered=[prompt])
        seconds = time.perf_counter() - start
        self.answers[at] = answer
        self.tokens_read.update(
            {runner.name: runner.tokens_read - before[runner.name] for runner in self.method.runners}
        )
        self.written += len(answer.token_ids)
        now_drafted, now_kept = self._counted()
        self.drafted, self.kept = self.drafted + now_drafted - drafted, self.kept + now_kept - kept
        return seconds / len(answer.token_ids)

    @property
    def read(self) -> dict[str, float]:
        """Tokens read per token written, prompts included."""
        return {name: count / self.written for name, count in self.tokens_read.items()}

    @property
    def acceptance(self) -> float:
        return self.kept / self.drafted if self.drafted else 1.0

    def _counted(self) -> tuple[int, int]:
        """Tokens drafted and kept so far; a model alone drafts nothing."""
        return getattr(self.method, "drafted", 0), getattr(self.method, "kept", 0)


class Steady(Safe):
    """The first place with a shared boundary in every ``period`` bytes of an answer is ensembled."""

    period = 100.0
    _last, _due = -1, 0.0

    def verify(self, sequence, proposal, start, heard) -> Check:  # type: ignore[no-untyped-def]
        found = super().verify(sequence, proposal, start, heard)
        if start < self._last:  # another answer
            self._due = self.period / 2
        self._last = start
        if not found.support:
            return found
        is_due = start >= self._due
        if is_due:
            self._due += self.period
        return replace(found, verdict="" if is_due else "consensus")


def shares(answers: list[Completion]) -> dict[str, float]:
    """Of the tokens: ensembled, replaced by another, and with a boundary that all models share."""
    records = [record for answer in answers for record in answer.trace]
    verdicts = [record.verdict for record in records]
    return {
        "ensembled": sum(verdict in ENSEMBLED for verdict in verdicts) / len(records),
        "replaced": verdicts.count("replaced") / len(records),
        "with a shared boundary": sum(bool(record.support) for record in records) / len(records),
    }


def alternate(candidates: dict[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Seconds per token of each for each prompt in each round, one after another; one unmeasured prompt before."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    prompts = range(len(next(iter(candidates.values())).prompts))
    for at in [0, *(at for _ in range(rounds) for at in prompts)]:
        for name, candidate in candidates.items():
            seconds[name].append(candidate(at))
    return {name: taken[1:] for name, taken in seconds.items()}


def compared(candidates: dict[str, Contestant], rounds: int) -> dict:
    seconds = alternate(candidates, rounds)
    alone, *others = candidates
    result = {
        "milliseconds per token": {name: 1000 * statistics.median(each) for name, each in seconds.items()},
        "tokens per answer": statistics.mean(len(answer.token_ids) for answer in candidates[alone].answers.values()),
    }
    for name in others:
        candidate = candidates[name]
        result[name] = {
            "time per token / drafter alone": quartiles(seconds[name], seconds[alone]),
            "shares of tokens": shares(list(candidate.answers.values())),
            "tokens read per output token": candidate.read,
            "kept / drafted": candidate.acceptance,
        }
    return result


# the zoo's own


def zoo(questions: int, rounds: int) -> dict:
    members = [
        Member.of(
            name, load_model(weights_folder(name), device="cpu"), load_tokenizer(weights_folder(name)), "chat_template"
        )
        for name in ZOO
    ]
    prompts = [each.prompt for each in examples("ledger", "test", questions)]
    drafter = members[0]

    def contestant(method: Any) -> Contestant:
        return Contestant(method, drafter, prompts, 300, ends=True)

    return compared(
        {
            "drafter": contestant(Single(drafter.model, drafter.name)),
            "UniTE+SAFE, two models": contestant(Safe(members[:2])),
            "UniTE+SAFE, three models": contestant(Safe(members)),
            "GaC+SAFE, two models": contestant(Safe(members[:2], host="gac")),
            "UniTE, two models": contestant(AveragingAcross(members[:2])),
            "GaC, two models": contestant(AveragingAcross(members[:2], host="gac")),
        },
        rounds,
    )


def on_one_thread(measure_it: Callable[[], dict]) -> dict:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure_it()
    finally:
        torch.set_num_threads(threads)


# random models of some size


def words(seed: int) -> Iterator[str]:
    """Sentences of made-up words, a few of them frequent."""
    rng = random.Random(seed)
    syllables = [
        first + vowel + last for first in "bdfgklmnprstvz" for vowel in "aeiou" for last in ("", "n", "r", "s")
    ]
    known = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(40000)]
    for _ in range(20000):
        yield " ".join(known[min(int(rng.paretovariate(0.8)) - 1, len(known) - 1)] for _ in range(12)) + "."


def tokenizer(kind: str, size: int) -> PreTrainedTokenizerFast:
    """Byte-level, or in SentencePiece's manner with byte tokens; trained on the same words."""
    if kind == "byte-level":
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )  # fmt: skip
        raw.train_from_iterator(words(0), trainer)
    else:
        raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>", "</s>", *bytes_], show_progress=False)
        raw.train_from_iterator(words(0), trainer)
        raw = _without_special(raw, bytes_)
    eos = "<eos>" if kind == "byte-level" else "</s>"
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos, clean_up_tokenization_spaces=False)


def _without_special(raw: Tokenizer, tokens: list[str]) -> Tokenizer:
    """Byte tokens had to be special while training; they are ordinary ones."""
    settings = json.loads(raw.to_str())
    settings["added_tokens"] = [each for each in settings["added_tokens"] if each["content"] not in tokens]
    return Tokenizer.from_str(json.dumps(settings))


def random_member(name: str, size: str, kind: str, tokens: int, seed: int, dtype: torch.dtype) -> Member:
    own = tokenizer(kind, tokens)
    config = LlamaConfig(
        vocab_size=len(own),
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=own.eos_token_id,
        **SIZES[size],
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).to(dtype).eval()
    model.generation_config.eos_token_id = own.eos_token_id
    return Member.of(name, model, own)


def random_pair(size: str, new: int, rounds: int, dtype: torch.dtype) -> dict:
    members = [
        random_member("drafter", size, "byte-level", 20000, 1, dtype),
        random_member("verifier", size, "pieces", 16000, 2, dtype),
    ]
    drafter, prompts = members[0], list(islice(words(2), RANDOM_PROMPTS))
    candidates = {"drafter": Contestant(Single(drafter.model, "drafter"), drafter, prompts, new, ends=False)}
    for host, options in {"UniTE+SAFE": {"host": "unite"}, "GaC+SAFE": {"host": "gac", "gate": None}}.items():
        method = Steady(members, **options)
        contestant = candidates[host] = Contestant(method, drafter, prompts, new, ends=False)
        for at in range(len(prompts)):
            contestant(at)
        method.period = bytes_per_token(list(contestant.answers.values()), drafter) / SHARE
    return compared(candidates, rounds)


def bytes_per_token(answers: list[Completion], drafter: Member) -> float:
    ids = [id for answer in answers for id in answer.token_ids]
    return len(drafter.pieces.text(ids)) / len(ids)


PARTS = ("zoo", "random, float32", "random, bfloat16")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    size, new, questions, rounds = options.size, options.new, options.questions, options.rounds
    how: dict[str, Callable[[], dict]] = {
        "zoo": lambda: on_one_thread(lambda: zoo(questions, rounds)),
        "random, float32": lambda: random_pair(size, new, rounds, torch.float32),
        "random, bfloat16": lambda: random_pair(size, new, rounds, torch.bfloat16),
    }
    return {
        **record(),
        "what": {"random models": f"Llama, {size}", "new tokens": new, "questions": questions, "rounds": rounds},
        **{label: part(label, how[label]) for label in options.parts},
    }


def render(results: dict) -> str:
    lines = [
        "| models | method | time per token / drafter alone (quartiles) | E/T, replaced, % | kept of drafted | "
        "read per output token |",
        "|---|---|---|---|---|---|",
    ]
    for pair in PARTS:
        for name, values in results.get(pair, {}).items():
            if isinstance(values, dict) and "shares of tokens" in values:
                lines.append(f"| {pair} | {name} | {_cells(values)} |")
    return "\n".join(lines)


def _cells(values: dict) -> str:
    taken, share = values["time per token / drafter alone"], values["shares of tokens"]
    return " | ".join(
        [
            f"{taken['median']:.2f} ({taken['lower quartile']:.2f} to {taken['upper quartile']:.2f})",
            f"{100 * share['ensembled']:.1f}, {100 * share['replaced']:.1f}",
            f"{values['kept / drafted']:.2f}",
            "; ".join(f"{model} {count:.2f}" for model, count in values["tokens read per output token"].items()),
        ]
    )


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--size", choices=SIZES, default="200m")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    run(parser, measure, render)


if __name__ == "__main__":
    main()
