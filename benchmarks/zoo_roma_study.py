"""Why tuned gates stay below the routing of their neighbours: the study of docs/moe.md.

    python benchmarks/zoo_roma_study.py --output benchmarks/results/zoo_roma_study.json    # after zoo_roma.py measure
    python benchmarks/zoo_roma_study.py --render benchmarks/results/zoo_roma_study.json

For the routers that `zoo_roma.py` has tuned with each λ: how far their routing is from that of the neighbours (the mean
of Eq. (7), and the least that any routing could have), and what is answered with their routing, with theirs at the last
prompt token alone and the base's elsewhere, and with the neighbours' mean routing at the last prompt token.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from zoo_roma import FAMILIES, HELD_OUT, SEEDS, SEEN, WEIGHTS, Workshop, with_delta

from fusionroute.environment import git_commit, versions
from fusionroute.models.gates import Gates
from fusionroute.moe.asking import ask
from fusionroute.moe.c3po.c3po import regression
from fusionroute.moe.c3po.references import References
from fusionroute.moe.neighbours import Neighbours, neighbours
from fusionroute.moe.questions.questions import encode_questions
from fusionroute.ops.manifold import manifold_loss
from fusionroute.output import write_json

Figures = dict[str, float]


def one_seed(seed: int) -> dict[str, Figures]:
    shop = Workshop(FAMILIES[0], seed)
    base, pathways = shop.gates(), shop.pathways
    train = encode_questions(pathways.questions, shop.format)
    found = neighbours(pathways.embeddings, pathways.embeddings, pathways.correct, k=3, exclude_self=True)
    asked = ask(base, shop.encoded, batch_size=64, hidden=True)
    references = References(pathways, train, k=3)
    target = regression(references.by_question(asked.hidden), references.routing)

    def figures(gates: Gates) -> Figures:
        own = ask(gates, shop.encoded, batch_size=64)
        alone = ask(base, shop.encoded, batch_size=64, routing=own.routing)
        given = ask(gates, shop.encoded, batch_size=64, routing=target)
        return {
            "manifold term, training questions": manifold(
                ask(gates, train, batch_size=64).routing, found, pathways.routing
            ),
            **right(shop, own.correct, "own routing"),
            **right(shop, alone.correct, "own routing at the last prompt token alone"),
            **right(shop, given.correct, "neighbours' routing at the last prompt token"),
        }

    mean = torch.einsum("nk,nkle->nle", found.weight, pathways.routing[found.index])
    least = {"manifold term, training questions": manifold(mean, found, pathways.routing)}
    points = {
        f"λ = {weight:g}": figures(with_delta(shop.gates(), shop.folder / "sweep" / "points" / repr(weight)))
        for weight in (0.0, *WEIGHTS)
    }
    return {"least possible": least, "base": figures(base), **points}


def manifold(routing: Tensor, found: Neighbours, recorded: Tensor) -> float:
    """Eq. (7), the mean over questions."""
    return float(manifold_loss(routing.flatten(1), recorded[found.index].flatten(2), found.weight).mean())


def right(shop: Workshop, correct: Tensor, name: str) -> Figures:
    tasks = shop.by_task(correct)
    sets = {"seen": SEEN, "held out": HELD_OUT}
    return {f"{name}, {label}": float(np.mean([np.mean(tasks[task]) for task in of])) for label, of in sets.items()}


def render(found: dict[str, Any]) -> str:
    """Means over seeds."""
    columns = list(found["seeds"]["0"]["base"])
    lines = ["| routers | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in found["seeds"]["0"]:
        cells = [[seed[name].get(column) for seed in found["seeds"].values()] for column in columns]
        lines.append(
            f"| {name} | " + " | ".join(_cell(each, column) for each, column in zip(cells, columns, strict=True)) + " |"
        )
    return "\n".join(lines)


def _cell(values: list[Any], column: str) -> str:
    if None in values:
        return ""
    return f"{np.mean(values):.2f}" if column.startswith("manifold") else f"{100 * np.mean(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--render", type=Path, help="print a finished result as a table")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    if options.render:
        print(render(json.loads(options.render.read_text())))
        return
    if options.output is None or (options.output.exists() and not options.overwrite):
        parser.error("give --output FILE; a file that exists needs --overwrite")
    torch.set_num_threads(1)
    seeds = {str(seed): one_seed(seed) for seed in SEEDS}
    found = {"versions": versions(), "commit": git_commit(), "family": FAMILIES[0], "seeds": seeds}
    write_json(options.output, found)
    print(render(found), f"\n\nwritten to {options.output}")


if __name__ == "__main__":
    main()
