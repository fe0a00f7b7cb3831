"""What RoMA pulls each question's routing towards: constants, computed once from the untouched model."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fusionroute.models.gates import Gates, rows_of
from fusionroute.moe.neighbours import Neighbours, neighbours, random_neighbours
from fusionroute.moe.optimise import Descent
from fusionroute.moe.oracle import best_routing
from fusionroute.moe.pathways.pathways import QUESTIONS_PER_FILE, Pathways
from fusionroute.moe.pathways.recording import Shards
from fusionroute.moe.questions.questions import Encoded
from fusionroute.moe.roma.batches import Targets, Where, chosen_of_all, pad_right
from fusionroute.moe.roma.settings import NeighbourSettings, RoMASettings, TokenSettings
from fusionroute.progress import Progress


def graph(pathways: Pathways, how: NeighbourSettings, seed: int) -> Neighbours:
    """Each question's neighbours among those answered correctly, never itself: Eqs. (3) to (6), or the random control.

    Raises:
        DataError: nothing was answered correctly, or the median distance, which is to be σ, is 0.
    """
    if how.kind == "random":
        return random_neighbours(len(pathways), pathways.correct, how.k, seed, exclude_self=True)
    return neighbours(
        pathways.embeddings,
        pathways.embeddings,
        pathways.correct,
        k=how.k,
        epsilon=how.epsilon,
        sigma=how.sigma,
        exclude_self=True,
    )


def manifold_targets(
    settings: RoMASettings, found: Neighbours, pathways: Pathways, gates: Gates, encoded: Sequence[Encoded], pad_id: int
) -> Targets:
    """The recorded routing of the neighbours in ``found``; at other tokens than the last one it is read off now."""
    if settings.tokens == TokenSettings():
        table = pathways.routing.flatten(1)[:, None]
    else:
        where, count = settings.tokens.where, settings.tokens.count
        table = routing_at(gates, encoded, where, count, pad_id=pad_id, batch_size=settings.batch_size)
    return Targets(table, found.index.cpu(), found.weight.cpu())


def oracle_targets(
    settings: RoMASettings,
    pathways: Pathways,
    gates: Gates,
    encoded: Sequence[Encoded],
    folder: Path,
    progress: Progress,
) -> Targets:
    """Each question's own best routing, Eq. (1), of weight 1: for oracle tuning, whose loss the paper does not give.

    Written to ``folder`` file by file; an interrupted search goes on from there.
    """
    descent = settings.descent.model_dump()
    shards = Shards(folder, {**pathways.settings, "descent": descent, "questions_per_file": QUESTIONS_PER_FILE})
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(len(shards)) if not shards.has(number)]
    if missing:
        progress.start("search the best routing", len(encoded))
        progress.advance(len(encoded) - sum(len(shards.rows(number)) for number in missing))
    for number in missing:
        some = [encoded[row] for row in shards.rows(number)]
        best = best_routing(gates, some, Descent(**descent), batch_size=settings.batch_size)
        shards.write(number, {"routing": best.cpu()})
        progress.advance(len(some))
    table = shards.read_all()["routing"].flatten(1)[:, None]
    progress.finish(f"oracle routing of {len(table):,} questions, {settings.descent.steps} steps each")
    return Targets(table, torch.arange(len(table))[:, None], torch.ones(len(table), 1))


@torch.no_grad()
def routing_at(
    gates: Gates, encoded: Sequence[Encoded], where: Where, count: int, *, pad_id: int, batch_size: int = 32
) -> Tensor:
    """The model's own routing at some tokens of each prompt, ``[n, count, L·E]``, float32 on the CPU."""
    positions = chosen_of_all(encoded, where, count)
    order = sorted(range(len(encoded)), key=lambda row: -len(encoded[row].prompt))
    table = torch.empty(len(encoded), count, gates.count * gates.experts)
    was_training = gates.model.training
    gates.model.eval()
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = pad_right([encoded[row] for row in rows], pad_id)
        device = gates.model.device
        with gates.reading() as tap:
            ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
            gates.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
            said = tap.routing(rows_of(mask, positions[rows].to(device)))
        table[rows] = said.flatten(1).float().cpu().unflatten(0, (len(rows), count))
    gates.model.train(was_training)
    return table
