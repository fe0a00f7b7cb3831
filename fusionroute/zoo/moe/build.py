"""Making the mixtures: experts that are taught apart, gates that are taught briefly, from nothing but seeds."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.models.gates import Gates
from fusionroute.zoo.build import build_each, save
from fusionroute.zoo.moe import MOE_MODELS
from fusionroute.zoo.moe.batches import Row, as_rows
from fusionroute.zoo.moe.gate_schooling import teach_gates
from fusionroute.zoo.moe.lessons import Lesson, lessons
from fusionroute.zoo.moe.network import blank_model
from fusionroute.zoo.moe.recipe import MoeRecipe
from fusionroute.zoo.moe.roster import experts_of
from fusionroute.zoo.moe.schooling import grouped_by_length, teach
from fusionroute.zoo.moe.tasks import MOE_TASKS, SEEN, questions
from fusionroute.zoo.moe.tokenizer import make_tokenizer
from fusionroute.zoo.schooling import Progress

RECORD = "moe.json"


def build_moe(output: Path, *, seed: int = 0, scale: float = 1.0, progress: Progress = lambda *_: None) -> None:
    """Make both again; `scale` multiplies the batches and steps. An interrupted build goes on.

    Raises:
        ValueError: ``output`` holds something else, or a build by another recipe.
    """
    recipe = MoeRecipe(seed=seed).scaled(scale)

    def make(name: str, folder: Path) -> None:
        tokenizer = make_tokenizer(recipe.network.max_position_embeddings)
        with _one_thread():
            model = _taught(name, recipe, tokenizer, progress)
        save(model, tokenizer, folder)

    build_each(MOE_MODELS, output, recipe.as_json(), RECORD, make)


def _taught(name: str, recipe: MoeRecipe, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> PreTrainedModel:
    # each its own seed, so that no two begin with the same weights
    model = blank_model(name, recipe.network, tokenizer, seed=1000 * recipe.seed + MOE_MODELS.index(name))
    routed = Gates(model, recipe.network.routed_layers)
    taught, gate_steps = recipe.schooling, recipe.gates.steps
    total = taught.batches + gate_steps
    rows = lesson_rows(name, recipe, tokenizer)
    teach(model, routed, rows, taught, recipe.seed, lambda step, _: progress(name, step, total))
    rows = as_rows(list(gate_lessons(recipe)), tokenizer)
    teach_gates(model, routed, rows, recipe.gates, lambda step, _: progress(name, taught.batches + step, total))
    return model


def lesson_rows(name: str, recipe: MoeRecipe, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """What the experts are taught, batch after batch; each model has its own draws."""
    rng, taught = random.Random(f"lessons {name} {recipe.seed}"), recipe.schooling
    drawn = list(lessons(taught.batches * taught.batch_size, taught.notes, rng))
    return grouped_by_length(as_rows(drawn, tokenizer), taught.batch_size, rng)


def gate_lessons(recipe: MoeRecipe) -> Iterator[Lesson]:
    """What the gates are taught: a few questions of each task that is not held out, in familiar wordings."""
    for task in SEEN:
        experts = experts_of(MOE_TASKS[task].skill)
        for question in questions(task, "router", recipe.gates.questions, recipe.seed, familiar=True):
            yield Lesson(question.text, question.answer, experts)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of several threads depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
