"""The zoo's models: where the shipped ones lie, and how to make them again from seeds."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.zoo.lessons import lessons
from fusionroute.zoo.recipe import Recipe
from fusionroute.zoo.schooling import Lessons, Progress, Report, blank_model, settings, teach
from fusionroute.zoo.tokenizer import train_tokenizer

MODELS = ("base", "math", "code", "chat")
WEIGHTS = Path(__file__).with_name("weights")
RECIPE = "recipe.json"
TOKENIZER_LESSONS = 3000


def weights_folder(name: str) -> Path:
    """The shipped checkpoint of that name, an ordinary transformers folder."""
    if name not in MODELS:
        raise ValueError(f"the zoo has no model {name!r}; choose one of {', '.join(MODELS)}")
    return WEIGHTS / name


def build(output: Path, *, seed: int = 0, scale: float = 1.0, progress: Progress = lambda *_: None) -> None:
    """Make tokenizer, base and experts again; `scale` multiplies the steps of every stage.

    A build that was interrupted goes on where it stopped when it is called again with the same settings.
    """
    recipe = Recipe(seed=seed).scaled(scale)
    _open(output, recipe)
    for name in MODELS:
        if not (output / name).exists():
            _make(name, recipe, output, progress)
    _write_recipe(output, recipe, models=(output / name for name in MODELS))


def _open(output: Path, recipe: Recipe) -> None:
    """Start a folder, or accept one that an interrupted build of this very recipe has left."""
    output.mkdir(parents=True, exist_ok=True)
    if not any(output.iterdir()):
        return _write_recipe(output, recipe)
    record = output / RECIPE
    if not record.exists():
        raise ValueError(f"{output} is not empty and holds no {RECIPE}; give a new or an empty folder")
    if json.loads(record.read_text())["recipe"] != recipe.as_json():
        settings_differ = f"{output} holds a build with other settings, see its {RECIPE}"
        raise ValueError(f"{settings_differ}; give the same settings or an empty folder")


def _make(name: str, recipe: Recipe, output: Path, progress: Progress) -> None:
    """Train one model under a temporary name; only a finished one gets its own."""
    unfinished = output / f"{name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    model, tokenizer = _beginning(name, recipe, output)
    stage = recipe.stage(name)
    data = Lessons(name, stage, tokenizer, recipe.seed)
    teach(model, data, tokenizer, settings(stage, recipe.seed, unfinished), Report(name, progress))
    _save(model, tokenizer, unfinished)
    unfinished.rename(output / name)


def _beginning(name: str, recipe: Recipe, output: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if name == "base":
        tokenizer = train_tokenizer(_texts(recipe.seed))
        return blank_model(recipe.network, tokenizer, recipe.seed), tokenizer
    model = LlamaForCausalLM.from_pretrained(output / "base", dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(output / "base")


def _texts(seed: int) -> Iterable[str]:
    for lesson in lessons("base", TOKENIZER_LESSONS, seed, carelessness=0.0, general=0.0):
        yield lesson.prompt
        yield lesson.answer


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.config.use_cache = True  # the trainer has switched it off
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_recipe(output: Path, recipe: Recipe, models: Iterable[Path] = ()) -> None:
    sums = {model.name: hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest() for model in models}
    versions = {library.__name__: library.__version__ for library in (torch, transformers, tokenizers)}
    record = {"recipe": recipe.as_json(), "versions": versions, "sha256": sums}
    (output / RECIPE).write_text(json.dumps(record, indent=2) + "\n")
