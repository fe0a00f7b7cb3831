"""Training one model of the zoo: lessons in, a trained model out. Where it is kept is not known here."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from fusionroute.zoo.lessons import lessons
from fusionroute.zoo.recipe import Network, Stage
from fusionroute.zoo.tokenizer import ASSISTANT, END, USER

Progress = Callable[[str, int, int], None]
Row = dict[str, list[int]]
UNSCORED = -100
BATCHES_PER_GROUP = 20


class Lessons(Dataset):
    """Prompts and answers as token ids, in the order of training; only the answer is scored."""

    def __init__(self, name: str, stage: Stage, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        drawn = lessons(name, stage.steps * stage.batch_size, seed, stage.carelessness, stage.general)
        rows = [_row(lesson.prompt, lesson.answer, tokenizer) for lesson in drawn]
        self.rows = batched_by_length(rows, stage.batch_size, random.Random(seed))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


class Report(TrainerCallback):
    """Tells after each step how far a model has come."""

    def __init__(self, name: str, progress: Progress) -> None:
        self.name = name
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.progress(self.name, state.global_step, state.max_steps)


def blank_model(network: Network, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """Random weights, the same ones for the same seed."""
    set_seed(seed)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **vars(network), **ids))


def teach(
    model: PreTrainedModel,
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    report: Report,
) -> None:
    """Train in place, on one thread: the result must not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=UNSCORED)
        Trainer(model, arguments, data_collator=collator, train_dataset=data, callbacks=[report]).train()
    finally:
        torch.set_num_threads(threads)


def settings(stage: Stage, seed: int, folder: Path) -> TrainingArguments:
    """What transformers is told; nothing is saved or logged, for a stage takes a minute or two."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size,
        learning_rate=stage.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(stage.steps * stage.warmup),
        label_smoothing_factor=stage.label_smoothing,
        weight_decay=0.01,
        adam_beta2=0.98,
        train_sampling_strategy="sequential",
        seed=seed,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _row(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> Row:
    question = tokenizer.encode(f"{USER}{prompt}{ASSISTANT}", add_special_tokens=False)
    reply = tokenizer.encode(f"{answer}{END}", add_special_tokens=False)
    return {"input_ids": question + reply, "labels": [UNSCORED] * len(question) + reply}


def batched_by_length(rows: list[Row], batch_size: int, rng: random.Random) -> list[Row]:
    """Rows of like length side by side, batches in random order.

    The sampler that transformers has for this goes from long to short within each group of batches; the tasks would
    come in cycles, and each would be forgotten before it came again.
    """
    group_size, batches = batch_size * BATCHES_PER_GROUP, []
    for start in range(0, len(rows), group_size):
        group = sorted(rows[start : start + group_size], key=lambda row: len(row["input_ids"]))
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    rng.shuffle(batches)
    return [row for batch in batches for row in batch]
