"""The zoo's models: where the shipped ones lie, and how to make them again from seeds."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.zoo.families import FAMILIES
from fusionroute.zoo.lessons import lessons
from fusionroute.zoo.moe import MOE_MODELS
from fusionroute.zoo.recipe import Recipe
from fusionroute.zoo.schooling import Lessons, Progress, Report, blank_model, settings, teach
from fusionroute.zoo.tokenizer import train_tokenizer

MODELS = ("base", "math", "code", "chat")
WEIGHTS = Path(__file__).with_name("weights")
RECIPE = "recipe.json"
TOKENIZER_LESSONS = 3000


def weights_folder(name: str) -> Path:
    """The shipped checkpoint of that name, an ordinary transformers folder."""
    names = (*MODELS, *FAMILIES, *MOE_MODELS)
    if name not in names:
        raise ValueError(f"the zoo has no model {name!r}; choose one of {', '.join(names)}")
    return WEIGHTS / name


def build(output: Path, *, seed: int = 0, scale: float = 1.0, progress: Progress = lambda *_: None) -> None:
    """Make tokenizer, base and experts again; `scale` multiplies the steps of every stage.

    A build that was interrupted goes on where it stopped when it is called again with the same settings.
    """
    recipe = Recipe(seed=seed).scaled(scale)

    def make(name: str, folder: Path) -> None:
        model, tokenizer = _beginning(name, recipe, output)
        stage = recipe.stage(name)
        data = Lessons(name, stage, tokenizer, recipe.seed)
        teach(model, data, tokenizer, settings(stage, recipe.seed, folder), Report(name, progress))
        save(model, tokenizer, folder)

    build_each(MODELS, output, recipe.as_json(), RECIPE, make)


def build_each(
    names: Sequence[str], output: Path, recipe: Mapping[str, object], record: str, make: Callable[[str, Path], None]
) -> None:
    """Let ``make(name, folder)`` write each model that is not there yet, and record recipe and checksums.

    Each is made under a temporary name; only a finished one gets its own.

    Args:
        record: the file of ``output`` that says what was made and how.

    Raises:
        ValueError: ``output`` holds something else, or a build by another recipe.
    """
    _open(output, recipe, record)
    for name in names:
        if not (output / name).exists():
            unfinished = output / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            make(name, unfinished)
            unfinished.rename(output / name)
    _write_record(output / record, recipe, models=[output / name for name in names])


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, eos: Sequence[int] = ()) -> None:
    """A checkpoint in half precision; ``eos`` are the ids that end an answer, where the tokenizer's is not the only."""
    shutil.rmtree(folder, ignore_errors=True)
    end = list(eos) or tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=tokenizer.pad_token_id)
    model.config.use_cache = True  # the trainer has switched it off
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _open(output: Path, recipe: Mapping[str, object], record: str) -> None:
    """Start a folder, or accept one that an interrupted build of this very recipe has left."""
    output.mkdir(parents=True, exist_ok=True)
    if not any(output.iterdir()):
        return _write_record(output / record, recipe)
    if not (output / record).exists():
        raise ValueError(f"{output} is not empty and holds no {record}; give a new or an empty folder")
    if json.loads((output / record).read_text())["recipe"] != recipe:
        settings_differ = f"{output} holds a build with other settings, see its {record}"
        raise ValueError(f"{settings_differ}; give the same settings or an empty folder")


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


def _write_record(record: Path, recipe: Mapping[str, object], models: Sequence[Path] = ()) -> None:
    sums = {model.name: hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest() for model in models}
    versions = {library.__name__: library.__version__ for library in (torch, transformers, tokenizers)}
    record.write_text(json.dumps({"recipe": recipe, "versions": versions, "sha256": sums}, indent=2) + "\n")
