"""Merging fine-tunes of one base, tensor by tensor: task arithmetic, TIES and DARE, by peft's own functions.

A task vector is expert minus base. Knows nothing of models or files; a tensor's name matters to DARE's draws alone.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fusionroute.config import Settings, nearest
from fusionroute.errors import SettingsError

Method = Literal["task_arithmetic", "ties", "dare"]

# What each method has beside `scale`, with its default. DARE: p = 0.9, as the FusionRoute paper has it (as well as
# λ = 1 for it and for task arithmetic). TIES is not in that paper: its own (arXiv 2306.01708) keeps the largest 20 %
# and has λ = 1 where it is not tuned.
DEFAULTS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "ties": {"density": 0.2},
    "dare": {"drop_rate": 0.9, "seed": 0},
}
OPTIONS = tuple(dict.fromkeys(option for options in DEFAULTS.values() for option in options))


class MergeSettings(Settings):
    """How to merge. An option of another method is an error; one left out is the method's default (`DEFAULTS`).

    Attributes:
        scale: λ, what the merged task vector is multiplied by before it is added to the base.
        density: of TIES, the share of each task vector's entries that is kept.
        drop_rate: of DARE, the probability p with which an entry is dropped; the others grow by 1 / (1 - p).
        seed: of DARE's draws.
    """

    method: Method
    scale: float = 1.0
    density: float | None = Field(None, gt=0, le=1)
    drop_rate: float | None = Field(None, ge=0, lt=1)
    seed: int | None = Field(None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _method_has_defaults_and_no_others_options(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "method" not in values:
            return values
        method = values["method"]
        if method not in DEFAULTS:
            raise ValueError(f"method: {nearest(method, DEFAULTS)}")
        given = {key: value for key, value in values.items() if key not in OPTIONS or value is not None}
        for option in OPTIONS:
            if option in given and option not in DEFAULTS[method]:
                owner = next(name for name in DEFAULTS if option in DEFAULTS[name])
                raise ValueError(f"{option} is an option of {owner} and does nothing in {method}; leave it out")
        return {**DEFAULTS[method], **given}


def merge(base: Tensor, experts: Sequence[Tensor], settings: MergeSettings, *, name: str = "") -> Tensor:
    """One tensor of the merged model, in the shape and dtype of ``base``; computed in float32 at least.

    With task vectors τᵢ = expertᵢ - base:

    * task arithmetic: base + λ Σ τᵢ
    * ties: base + λ × the mean, entry by entry, of the trimmed τᵢ whose sign is that of their sum. Trimming keeps the
      largest entries of each tensor, where the TIES paper takes them from all tensors together.
    * dare: base + λ Σ dropped(τᵢ) / (1 - p)

    Args:
        experts: of the shape of ``base``. Their order matters to DARE, which draws for each by its place.
        name: of the tensor; DARE draws by it and the seed, so tensors may be merged in any order.
    """
    if settings.scale == 0:
        return base.clone()  # adding zeros would turn -0 into 0
    precise = torch.promote_types(base.dtype, torch.float32)
    start = base.to(precise)
    vectors = [expert.to(base.device, precise) - start for expert in experts]
    merged = FORMULAS[settings.method](vectors, settings, name)
    return (start + settings.scale * merged).to(base.dtype)


def _task_arithmetic(vectors: list[Tensor], settings: MergeSettings, name: str) -> Tensor:
    return formulas().task_arithmetic(vectors, _ones(vectors))


def _ties(vectors: list[Tensor], settings: MergeSettings, name: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The density .* no pruning", UserWarning)  # it was asked for
        return formulas().ties(vectors, _ones(vectors), settings.density, majority_sign_method="total")


def _dare(vectors: list[Tensor], settings: MergeSettings, name: str) -> Tensor:
    assert settings.drop_rate is not None
    dropped = [
        _drop(vector, settings.drop_rate, f"{settings.seed} {place} {name}") for place, vector in enumerate(vectors)
    ]
    return formulas().task_arithmetic(dropped, _ones(vectors))


FORMULAS: dict[str, Callable[[list[Tensor], MergeSettings, str], Tensor]] = {
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "dare": _dare,
}


def _drop(vector: Tensor, rate: float, key: str) -> Tensor:
    """DARE's drop and rescale, drawn on the CPU so that it is the same on every device."""
    if rate == 0:
        return vector
    # peft draws from torch's global generator, which is given back as it was
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_seed(key))
        return formulas().prune(vector.cpu(), 1 - rate, method="random", rescale=True).to(vector.device)


def _seed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1


def _ones(vectors: list[Tensor]) -> Tensor:
    return vectors[0].new_ones(len(vectors))


def formulas() -> Any:
    """PEFT's own, an optional library. Raises `SettingsError` where it is not installed."""
    try:
        from peft.utils import merge_utils
    except ImportError as error:
        raise SettingsError("merging needs peft: pip install 'fusionroute[peft]'") from error
    return merge_utils
