"""Can this model take turns? Asked once per model, before any request, and measured rather than looked up by name."""

from typing import Any
from weakref import WeakKeyDictionary

import torch

from fusionroute.config import GenerationSettings
from fusionroute.engine.masks import FULL, SLIDING, layer_kinds
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.errors import UnsupportedModelError

MASKED_ATTENTION = ("sdpa", "eager")  # implementations that take a mask per row
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative; half precision is coarser
HALF_TOLERANCE = 0.1

_bytes_per_token: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def bytes_per_token(model: Any, name: str) -> int:
    """Cache bytes that one token of one sequence takes in ``model``; checks the model on first sight.

    Raises:
        UnsupportedModelError: its cache cannot be cut back, or reading in turns does not give what a plain pass does.
    """
    if model not in _bytes_per_token:
        _refuse_by_kind(model, name)
        _bytes_per_token[model] = _measure(model, name)
    return _bytes_per_token[model]


def _refuse_by_kind(model: Any, name: str) -> None:
    lm = getattr(model, "lm", model)
    config = model.config.get_text_config()
    kinds = (layer_kinds(config) or set()) - {FULL, SLIDING}
    if getattr(lm, "_is_stateful", False) or kinds:
        what = f"layers of kind {', '.join(sorted(kinds))}" if kinds else "a recurrent state"
        raise _unsupported(model, name, f"it keeps {what}, which cannot be cut back to an earlier token")
    if layer_kinds(config) is None and getattr(config, "attention_chunk_size", None):
        raise _unsupported(model, name, "it attends in chunks, for which there is no mask yet")
    if config._attn_implementation not in MASKED_ATTENTION:
        raise _unsupported(
            model,
            name,
            f"attn_implementation={config._attn_implementation!r} takes no mask per row; load it with 'sdpa'",
        )


def _unsupported(model: Any, name: str, reason: str) -> UnsupportedModelError:
    kind = type(getattr(model, "lm", model)).__name__
    return UnsupportedModelError(
        f"model {name!r} ({kind}) cannot take turns: {reason}; use a model with a plain key-value cache"
    )


def _measure(model: Any, name: str) -> int:
    """Two rows of different lengths, read in pieces with a cut in between, against plain passes."""
    runner = Runner(model, name)
    size = model.config.get_text_config().vocab_size
    ids = [(7 * at + 1) % size for at in range(11)]
    try:
        long, short = _sequence(ids[:6]), _sequence(ids[4:6])
        runner.read([long, short])
        runner.rollback(long, 3)
        long.token_ids[:], short.token_ids[:] = ids[:7], ids[4:7]
        cached = runner.read([long, short]).logits[:, -1].float()
        with torch.inference_mode():
            plain = [model(torch.tensor([s.token_ids], device=model.device), use_cache=False) for s in (long, short)]
        expected = torch.stack([output.logits[0, -1].float() for output in plain])
    except torch.OutOfMemoryError:
        raise
    except (TypeError, AttributeError, ValueError, IndexError, KeyError, RuntimeError, NotImplementedError) as error:
        raise _unsupported(model, name, f"a pass with our cache failed ({type(error).__name__}: {error})") from error
    _compare(model, name, cached, expected)
    if runner.cache.nbytes == 0:
        raise _unsupported(model, name, "it keeps nothing in the cache it is given")
    return runner.cache.bytes_per_token


def _compare(model: Any, name: str, cached: torch.Tensor, expected: torch.Tensor) -> None:
    error = (cached - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    tolerance = TOLERANCE.get(model.dtype, HALF_TOLERANCE)
    if error > tolerance:  # a model that says NaN is left to fail where it speaks: NaN compares as False
        raise _unsupported(
            model,
            name,
            f"after its cache was cut back, its logits differ from a plain pass by {float(error):.2g} (relative)",
        )


def _sequence(ids: list[int]) -> Sequence:
    return Sequence(ids, GenerationSettings(max_new_tokens=8))
