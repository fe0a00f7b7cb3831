"""What answers cost: tokens read per model, time per token, memory. Quality without its price is half a result."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from fusionroute.engine.method import Method
from fusionroute.engine.runner import Runner
from fusionroute.engine.scorer import Scorer
from fusionroute.engine.sequence import ENSEMBLED, Completion
from fusionroute.models.reward import RewardModel

SCORER = "scorer"


def reward_model_of(method: Method) -> RewardModel | None:
    """The model that judges for a method without being one of its runners."""
    scorer: Scorer | None = getattr(method, "scorer", None)
    return None if scorer is None else scorer.reward_model


def runners_of(method: Method) -> list[Runner]:
    return [runner for runner in method.runners if isinstance(runner, Runner)]


def tokens_read(method: Method) -> dict[str, int]:
    """By model; what is read again after a rollback counts again, padding does not."""
    counts: Counter[str] = Counter()
    for runner in runners_of(method):
        counts[runner.name] += runner.tokens_read
    if (reward_model := reward_model_of(method)) is not None:
        counts[SCORER] += reward_model.tokens_read
    return dict(counts)


def drafts(method: Method) -> dict[str, int]:
    """Tokens that one model proposed for others to check, and how many of them stand; empty where none are."""
    drafted: int | None = getattr(method, "drafted", None)
    return {} if drafted is None else {"drafted": drafted, "kept": getattr(method, "kept", 0)}


def ensembles(completions: Iterable[Completion]) -> dict[str, int]:
    """How many tokens were ensembled, of how many; empty where the trace says nothing of it.

    A property of the answers: those that an interrupted measurement left count like the others.
    """
    verdicts = [record.verdict for completion in completions for record in completion.trace]
    if not any(verdicts):
        return {}
    return {"ensembled": sum(verdict in ENSEMBLED for verdict in verdicts), "of_tokens": len(verdicts)}


def peak_memory(method: Method) -> dict[str, int]:
    """Bytes that the method keeps: weights (shared ones once) and key-value caches, which only grow while it writes.

    On CUDA also ``allocated``, the allocator's peak, activations included, since `reset_peak`.
    """
    models = [runner.model for runner in runners_of(method)]
    if (reward_model := reward_model_of(method)) is not None:
        models.append(reward_model.model)
    kept = {"weights": _weights(models), "cache": sum(runner.cache.nbytes for runner in runners_of(method))}
    if torch.cuda.is_available():
        kept["allocated"] = sum(torch.cuda.max_memory_allocated(at) for at in range(torch.cuda.device_count()))
    return kept


def reset_peak() -> None:
    for at in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.cuda.reset_peak_memory_stats(at)


def total_cost(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a method's cells cost together; None if it wrote nothing (tasks of likelihoods alone)."""
    costs = [cell["cost"] for cell in cells if cell["cost"]["tokens_written"]]
    written = sum(cost["tokens_written"] for cost in costs)
    if not written:
        return None
    read = Counter[str]()
    for cost in costs:
        read.update(cost["tokens_read"])
    return {
        "seconds_per_token": sum(cost["seconds"] for cost in costs) / written,
        "tokens_written": written,
        "tokens_read_per_token": {name: count / written for name, count in read.items()},
        "peak_memory": _largest(cost["peak_memory"] for cost in costs),
        "batch": max(cost["batch"] for cost in costs),
        **_share(cells, "ensembled_per_token", "ensembled", "of_tokens"),
        **_share(cells, "acceptance", "kept", "drafted"),
    }


def _share(cells: Iterable[Mapping[str, Any]], name: str, part: str, whole: str) -> dict[str, float]:
    """One figure over the cells that count it; empty where none does."""
    counted = [cell["cost"] for cell in cells if cell["cost"].get(whole)]
    return {name: sum(cost[part] for cost in counted) / sum(cost[whole] for cost in counted)} if counted else {}


def _weights(models: Iterable[torch.nn.Module]) -> int:
    sizes = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for model in models
        for tensor in (*model.parameters(), *model.buffers())
    }
    return sum(sizes.values())


def _largest(memories: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for memory in memories:
        for name, size in memory.items():
            found[name] = max(found.get(name, 0), size)
    return found
