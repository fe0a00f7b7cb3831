"""Making the families: each its tokenizer and its model, from nothing but seeds."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fusionroute.zoo.build import build_each, save
from fusionroute.zoo.families import FAMILIES, byte_bpe, piece_bpe, unigram
from fusionroute.zoo.families.lessons import tokenizer_texts
from fusionroute.zoo.families.recipe import FamilyRecipe
from fusionroute.zoo.families.schooling import lesson_rows, quieten_branches, teach
from fusionroute.zoo.schooling import Progress, blank_model

RECORD = "families.json"
TRAIN_TOKENIZER: Mapping[str, Callable[[Iterable[str], int], PreTrainedTokenizerFast]] = MappingProxyType(
    {
        "byte_bpe": byte_bpe.train_tokenizer,
        "piece_bpe": piece_bpe.train_tokenizer,
        "unigram": unigram.train_tokenizer,
    }
)


def build_families(output: Path, *, seed: int = 0, scale: float = 1.0, progress: Progress = lambda *_: None) -> None:
    """Make the three again; `scale` multiplies the batches of every phase. An interrupted build goes on.

    Raises:
        ValueError: ``output`` holds something else, or a build by another recipe.
    """
    recipe = FamilyRecipe(seed=seed).scaled(scale)

    def make(name: str, folder: Path) -> None:
        tokenizer = make_tokenizer(name, recipe)
        # each its own seed, so that no two begin with the same weights
        model = blank_model(recipe.network, tokenizer, seed=1000 * recipe.seed + FAMILIES.index(name))
        quieten_branches(model, recipe.branch_scale)
        rows = lesson_rows(name, recipe, tokenizer)
        teach(model, rows, recipe, lambda step, steps: progress(name, step, steps))
        save(model, tokenizer, folder, _end_ids(tokenizer))

    build_each(FAMILIES, output, recipe.as_json(), RECORD, make)


def make_tokenizer(name: str, recipe: FamilyRecipe) -> PreTrainedTokenizerFast:
    """The tokenizer of one family, the same for the same recipe."""
    return TRAIN_TOKENIZER[name](tokenizer_texts(name, recipe), recipe.network.max_position_embeddings)


def _end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end of an answer, and the end of a text where that is another one, as Gemma has it."""
    text_end = tokenizer.convert_tokens_to_ids(unigram.END)
    others = [] if text_end is None or text_end == tokenizer.unk_token_id else [text_end]
    return [tokenizer.eos_token_id, *others]
