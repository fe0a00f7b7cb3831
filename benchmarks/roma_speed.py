"""What RoMA costs: a training step beside plain router tuning, and inference before and after. Ratios inside one run.

    python benchmarks/roma_speed.py --output benchmarks/results/roma_speed.json
    python benchmarks/roma_speed.py --render benchmarks/results/roma_speed.json

A random OLMoE of 100M parameters. Router tuning is transformers' own `Trainer` with everything but the last five gates
frozen, on the same batches; it knows of no hooks. Steps alternate, one of each; so do generations by the base and by
the tuned checkpoint, read from disk. Reported are medians with quartiles.
"""

import argparse
import statistics
import tempfile
from typing import Any

import torch
from measuring import described, quartiles, record, run, timed
from transformers import AutoModelForCausalLM, OlmoeConfig, OlmoeForCausalLM, Trainer, TrainingArguments

from fusionroute.models.gates import Gates
from fusionroute.moe.questions.questions import Encoded
from fusionroute.moe.roma.batches import IGNORED, Collator, Targets, answer_loss
from fusionroute.moe.roma.trainer import RoMAArguments, RoMATrainer

SIZES = {
    "100m": {"hidden_size": 512, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8},
    "tiny": {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 6, "num_attention_heads": 8},
}
EXPERTS, TOP_K, VOCABULARY, NEIGHBOURS = 32, 4, 8192, 3
BATCH, PROMPT, ANSWER = 8, 96, 8


def model(seed: int, size: str) -> OlmoeForCausalLM:
    torch.manual_seed(seed)
    config = OlmoeConfig(
        **SIZES[size], num_key_value_heads=8, num_experts=EXPERTS, num_experts_per_tok=TOP_K, vocab_size=VOCABULARY,
        eos_token_id=0, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    made = OlmoeForCausalLM(config)
    with torch.no_grad():
        for layer in made.model.layers:
            layer.mlp.gate.weight.normal_(std=0.02)
    return made


def questions(count: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (count, PROMPT + ANSWER), generator=generator).tolist()
    return [Encoded(row[:PROMPT], (row[PROMPT:],), 0) for row in ids]


class RouterTuning(Trainer):
    """The task loss alone, on gates alone."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
        kept = inputs["labels"].shape[1] - int(inputs["labels"].ne(IGNORED).int().argmax(1).min())
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, logits_to_keep=kept
        ).logits
        return answer_loss(logits[:, -kept:], inputs["labels"][:, -kept:]).mean()


def trainers(size: str, steps: int, folder: str) -> dict[str, Trainer]:
    asked = questions(BATCH * 4)
    generator = torch.Generator().manual_seed(1)
    table = torch.rand(len(asked), 1, 5 * EXPERTS, generator=generator)
    index = torch.randint(0, len(asked), (len(asked), NEIGHBOURS), generator=generator)
    targets = Targets(table, index, torch.full(index.shape, 1 / NEIGHBOURS))
    options: dict[str, Any] = {
        "output_dir": folder, "per_device_train_batch_size": BATCH, "max_steps": steps, "learning_rate": 1e-3,
        "use_cpu": True, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "logging_strategy": "no",
    }  # fmt: skip
    gates, other = Gates(model(0, size)), Gates(model(0, size))
    roma = RoMATrainer(gates, RoMAArguments(weight=1.0, **options), asked, targets, pad_id=0)
    other.model.requires_grad_(False)
    for weight in other.parameters():
        weight.requires_grad_(True)
    plain = RouterTuning(
        other.model,
        TrainingArguments(**options, remove_unused_columns=False),
        data_collator=Collator(asked, targets, pad_id=0, where="last", count=1),
        train_dataset=roma.train_dataset,
    )
    return {"RoMA": roma, "router tuning": plain}


def step_times(size: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of one step of each, alternating: each trainer is asked for one step at a time."""
    with tempfile.TemporaryDirectory() as folder:
        made = trainers(size, rounds + 2, folder)
        batches = {name: list(trainer.get_train_dataloader()) for name, trainer in made.items()}
        for trainer in made.values():
            trainer.create_optimizer()
            trainer.current_gradient_accumulation_steps = 1  # `train` would say so
            trainer.model.train()
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for number in range(rounds + 2):
            for name, trainer in made.items():
                batch = batches[name][number % len(batches[name])]
                seconds[name].append(timed(lambda trainer=trainer, batch=batch: one_step(trainer, batch)))
    return {name: each[2:] for name, each in seconds.items()}


def one_step(trainer: Trainer, batch: dict[str, Any]) -> None:
    """Loss, gradient, clipping, step: what `Trainer.train` does between two log lines."""
    trainer.training_step(trainer.model, batch)
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def inference_times(size: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of one `generate` by the base and by the checkpoint whose gates were trained a few steps."""
    with tempfile.TemporaryDirectory() as folder:
        roma = trainers(size, 4, folder)["RoMA"]
        roma.gates.model.save_pretrained(f"{folder}/before")
        roma.train()
        roma.gates.model.save_pretrained(f"{folder}/after")
        models = {name: AutoModelForCausalLM.from_pretrained(f"{folder}/{name}").eval() for name in ("before", "after")}
        ids = torch.tensor([each.prompt for each in questions(2)])
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for number in range(rounds + 1):
            for name, each in models.items():
                how = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
                taken = timed(lambda each=each, how=how: each.generate(ids, attention_mask=torch.ones_like(ids), **how))
                if number:
                    seconds[name].append(taken)
    return seconds


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds = options.rounds
    steps, inference = step_times(options.size, rounds), inference_times(options.size, max(4, rounds // 3))
    return {
        **record(),
        "what": {**SIZES[options.size], "experts": EXPERTS, "top_k": TOP_K, "batch": BATCH, "tokens": PROMPT + ANSWER},
        "RoMA step / router tuning step": quartiles(steps["RoMA"], steps["router tuning"]),
        "seconds per step": {name: statistics.median(each) for name, each in steps.items()},
        "inference after / before": quartiles(inference["after"], inference["before"]),
    }


def render(found: dict[str, Any]) -> str:
    lines = ["| what | median | quartiles | n |", "|---|---|---|---|"]
    for name in ("RoMA step / router tuning step", "inference after / before"):
        each = found[name]
        quartiles = f"{each['lower quartile']:.2f} to {each['upper quartile']:.2f}"
        lines.append(f"| {name} | {each['median']:.2f} | {quartiles} | {each['n']} |")
    return "\n".join(lines)


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--size", choices=SIZES, default="100m")
    parser.add_argument("--rounds", type=int, default=40)
    run(parser, measure, render)


if __name__ == "__main__":
    main()
