"""Questions for tiny random mixture-of-experts models, and what is recorded of them."""

import random
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

import tiny
from fusionroute.models.gates import Gates
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.pathways.pathways import Pathways, record
from fusionroute.moe.questions.questions import Encoded, Question, encode_questions

WORDS = ("moon", "tree", "blue", "seven", "cat", "warm", "oil", "up", "knife", "r")
LETTERS = tuple("abcdefgh")  # options of one length, so that routing can decide between them
LAYERS = 2


def questions(count: int, seed: int = 0, words: Sequence[str] = WORDS) -> list[Question]:
    """Of three options each, taken from ``words``; a random model has about a third of them right."""
    dice = random.Random(seed)
    made = []
    for number in range(count):
        text = f"{number}{seed}: " + " ".join(dice.choices(WORDS, k=dice.randint(1, 4))) + "?"
        options = tuple(dice.sample(words, 3))
        made.append(Question(text, dice.choice(options), options))
    return made


def prompt_format() -> PromptFormat:
    return PromptFormat(tiny.tokenizer())


def encoded(count: int, seed: int = 0, words: Sequence[str] = WORDS) -> list[Encoded]:
    return encode_questions(questions(count, seed, words), prompt_format())


def recorded(model: PreTrainedModel, folder: Path, count: int = 24, seed: int = 50) -> Pathways:
    return record(Gates(model, LAYERS), questions(count, seed), folder, prompt_format=prompt_format())
