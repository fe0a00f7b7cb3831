"""What learning the choice of expert costs: a scored SFT step over a plain `transformers.Trainer` step of the same LM.

    python benchmarks/sft_step.py --output benchmarks/results/sft_step.json
    python benchmarks/sft_step.py --render benchmarks/results/sft_step.json

All train the same random Llama on the same batches with the same optimizer: `plain` is transformers' Trainer and its
own loss of the answers; `scored` is `SFTTrainer` on what three experts said before; `live` is `SFTTrainer` with the
experts in memory (`aggregation: renormalised`). A step is everything between the ends of two steps: batch, passes,
clipping, optimizer, logging. In one process they alternate in short blocks; a ratio is that of one round's blocks,
reported as the median over rounds with the smallest and the largest. On a CPU that others use too, wall time is their
doing; the time of the processor, on one thread, is ours. Memory is the growth of a fresh process for each.
"""

import argparse
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from datasets import Dataset
from engine_speed import VOCABULARY
from measuring import conclude, described, parse, ratio, record
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from fusionroute import Router
from fusionroute.training.trainers.live import LiveExperts
from fusionroute.training.trainers.sft import SFTConfig, SFTTrainer

NAMES = ("math", "code", "chat")
PLAIN, SCORED, LIVE = "plain", "scored", "live"
SIZES = {
    "36m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6},
    "59m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
BATCH, STEPS = 4, 3  # of a block; its first step is not measured
LENGTHS, PROMPT_SHARE = (224, 288), 1 / 3


def language_model(size: str, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    special = {"bos_token_id": None, "eos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **special, **SIZES[size]))
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def scored_examples() -> Dataset:
    """A block's examples, as `load_scores` returns them; experts agree on a third of the tokens."""
    dice = np.random.default_rng(0)
    rows = []
    for length in dice.integers(*LENGTHS, BATCH * STEPS):
        prompt = int(length * PROMPT_SHARE)
        answer = int(length) - prompt
        row: dict[str, Any] = {"input_ids": dice.integers(0, VOCABULARY, length).tolist(), "prompt_length": prompt}
        row |= {f"nll.{name}": dice.gamma(0.3, 2.0, answer).astype(np.float32).tolist() for name in NAMES}
        row |= {f"top_choice.{name}": (dice.random(answer) < 2 / 3).astype(int).tolist() for name in NAMES}
        rows.append(row)
    return Dataset.from_list(rows)


def plain_batch(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The same tokens and answers, in the form that a causal LM computes its own loss of."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [each.clone() for each in ids]
    for each, row in zip(labels, rows, strict=True):
        each[: row["prompt_length"]] = -100
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


class Clock(TrainerCallback):
    """Wall and processor seconds at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))

    def per_step(self) -> tuple[float, float]:
        """Means over the block since the end of its first step."""
        wall, processor = (last - first for first, last in zip(self.ends[0], self.ends[-1], strict=True))
        steps = len(self.ends) - 1
        self.ends = []
        return wall / steps, processor / steps


def options(folder: str) -> dict[str, Any]:
    common = {"output_dir": folder, "per_device_train_batch_size": BATCH, "max_steps": STEPS, "save_strategy": "no"}
    quiet = {"report_to": "none", "disable_tqdm": True, "remove_unused_columns": False}
    return common | quiet | {"logging_steps": 1, "learning_rate": 1e-5, "dataloader_pin_memory": False}


def make_trainer(what: str, lm: LlamaForCausalLM, size: str, folder: str) -> tuple[Trainer, Clock]:
    data, clock = scored_examples(), Clock()
    if what == PLAIN:
        arguments = TrainingArguments(**options(folder))
        trainer = Trainer(lm, arguments, data_collator=plain_batch, train_dataset=data, callbacks=[clock])
    else:
        aggregation = "renormalised" if what == LIVE else "expected_nll"
        live = LiveExperts([language_model(size, seed) for seed in range(1, 4)]) if what == LIVE else None
        router, wanted = Router(lm, len(NAMES)), SFTConfig(aggregation=aggregation, **options(folder))
        trainer = SFTTrainer(router, wanted, data, live=live, callbacks=[clock])
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, clock


def speed(size: str, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds per step of each in each round, after a round that only warms up."""
    with tempfile.TemporaryDirectory() as folder:
        made = {what: make_trainer(what, language_model(size, 0), size, folder) for what in (PLAIN, SCORED, LIVE)}
        wall: dict[str, list[float]] = {what: [] for what in made}
        processor: dict[str, list[float]] = {what: [] for what in made}
        for number in range(rounds + 1):
            for what in made if number % 2 else reversed(made):
                trainer, clock = made[what]
                trainer.train()
                times = clock.per_step()
                if number:
                    wall[what].append(times[0])
                    processor[what].append(times[1])
            say(f"round {number} of {rounds}")
    return {kind: compared(times) for kind, times in (("processor time", processor), ("wall time", wall))}


def compared(times: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "seconds per step": {what: statistics.median(each) for what, each in times.items()},
        "scored / plain": ratio(times[SCORED], times[PLAIN]),
        "live / plain": ratio(times[LIVE], times[PLAIN]),
    }


def memory(what: str, size: str) -> int:
    """Bytes that this process, or its GPU, grows by at most while it trains; the model itself is there before."""
    lm = language_model(size, 0)
    on_gpu = torch.cuda.is_available()
    before = torch.cuda.memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(what, lm, size, folder)[0].train()
    if on_gpu:
        return torch.cuda.max_memory_allocated() - before
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before


def in_a_process_of_its_own(what: str, size: str) -> int:
    command = [sys.executable, __file__, "--memory", what, "--size", size]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(wanted: argparse.Namespace) -> dict[str, Any]:
    size, rounds = wanted.size, wanted.rounds
    grown = {what: in_a_process_of_its_own(what, size) for what in (PLAIN, SCORED, LIVE)}
    print({what: f"{each / 2**20:.0f} MiB" for what, each in grown.items()}, flush=True)
    times = speed(size, rounds, lambda said: print(said, flush=True))
    on_gpu = torch.cuda.is_available()
    return {
        **record(),
        "what": {
            "model": f"random Llama, {size}, float32, vocabulary {VOCABULARY}",
            "parameters": sum(p.numel() for p in language_model(size, 0).parameters()),
            "shape": SIZES[size],
            "experts": len(NAMES),
            "batch": BATCH,
            "tokens per sequence": LENGTHS,
            "share of prompt": PROMPT_SHARE,
            "rounds": rounds,
            "measured steps per block": STEPS - 1,
            "published": "wall time" if on_gpu else "processor time: the machine is shared, so wall time is noise",
        },
        **times,
        "peak memory": {
            "bytes beyond the model": grown,
            "scored / plain": grown[SCORED] / grown[PLAIN],
            "live / plain": grown[LIVE] / grown[PLAIN],
        },
    }


def render(results: dict[str, Any]) -> str:
    kind = "wall time" if results["what"]["published"] == "wall time" else "processor time"
    lines = [f"| against a plain Trainer step | {kind} | min to max | peak memory |", "|---|---|---|---|"]
    for what, label in ((SCORED, "scored step"), (LIVE, "live step, experts in memory")):
        name = f"{what} / {PLAIN}"
        found, grown = results[kind][name], results["peak memory"][name]
        lines.append(f"| {label} | {found['median']:.2f} | {found['min']:.2f} to {found['max']:.2f} | {grown:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--size", choices=SIZES, default="36m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", choices=[PLAIN, SCORED, LIVE], help=argparse.SUPPRESS)  # a process of its own
    wanted = parse(parser)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    if wanted.memory:
        print(memory(wanted.memory, wanted.size))
        return
    conclude(parser, wanted, measure, render)


if __name__ == "__main__":
    main()
