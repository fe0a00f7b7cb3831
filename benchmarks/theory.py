"""The paper's theorems in numbers: what no router can guarantee, and what complementary logits recover.

    python benchmarks/theory.py             # enumerate, write benchmarks/results/theory.json, draw both figures
    python benchmarks/theory.py --render    # that file as Markdown tables

All values are exact (up to rounding): every response of every world is visited. Only the worlds of the recovery bound
are drawn at random, from one seed.
"""

import argparse
import io
import json
import shlex
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fusionroute.environment import git_commit, machine, versions
from fusionroute.errors import FusionRouteError, OutputExistsError
from fusionroute.output import write_json, write_text
from fusionroute.theory.identifiability import Family, largest_gap, path_values
from fusionroute.theory.recovery import (
    favouring_router,
    free_policy,
    fuse,
    greedy,
    needle_tree,
    noisy_router,
    random_expert,
    random_tree,
    recover,
    soften,
    softened_experts,
    threshold,
    total_variation,
    value,
)

RESULTS = Path("benchmarks/results/theory.json")
IMAGES = Path("docs/images")

ROUTED = [(2, 6), (2, 8), (2, 10), (2, 12), (3, 6), (3, 8), (3, 10)]  # experts, horizon
CHECKED = [(2, 6), (2, 8), (2, 10), (3, 6), (3, 8)]  # visiting every prefix of every world takes longer
STRENGTHS = (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
TREES_PER_STRENGTH = 100
DEMO, ETA = Family(experts=2, horizon=6), 0.1
GREY, BLUE, ORANGE, GREEN, RED = "#555555", "#0072b2", "#e69f00", "#009e73", "#d55e00"
BELOW: dict[str, Any] = {
    "frameon": False,
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.14),
    "ncols": 4,
    "fontsize": "small",
}

# Columns of the tables: a key of the record, and what stands above it.
ROUTED_COLUMNS = {
    "experts": "experts",
    "horizon": "T",
    "secrets": "secrets",
    "v_star": "V*",
    "right_path": "right path",
    "best_mean": "best router, mean",
    "worst_mean": "worst router, mean",
    "best_deterministic_worst": "best deterministic router, worst secret",
    "limit": "T/2 + 2",
}
CONDITION_COLUMNS = {
    "experts": "experts",
    "horizon": "T",
    "best_route_loss": "(7)",
    "optimal_gap": "(8)",
    "near_optimal_gap": "(9)",
    "near_optimal_gap_at_epsilon_0": "(9) at ε = 0",
    "gap_anywhere": "at any prefix",
}
TREE_COLUMNS = {
    "strength": "router's strength, nats",
    "trees": "trees",
    "violations": "violations",
    "median_ratio": "lost / bound, median",
    "largest_ratio": "largest",
    "bounds_below_v_star": "trees whose bound is below V*",
}
NEEDLE_COLUMNS = {"delta": "Δ", "gap": "lost", "bound": "bound", "ratio": "lost / bound"}
DEMO_COLUMNS = {"margins": "margin, nats", "greedy": "greedy", "sampled": "drawn", "guaranteed": "guaranteed by (6)"}


def main() -> None:
    options = _options()
    try:
        print(render(json.loads(options.output.read_text()))) if options.render else measure(options)
    except FusionRouteError as error:
        sys.exit(f"error: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the random trees")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of the figures")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file and the figures")
    parser.add_argument("--render", action="store_true", help="print the output file as Markdown, compute nothing")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> None:
    """One file with everything, and the figures drawn from it."""
    if options.output.exists() and not options.overwrite:
        raise OutputExistsError(f"{options.output} exists; give --overwrite to replace it")
    began = time.monotonic()
    record: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": git_commit(),
        "versions": versions() | {name: version(name) for name in ("numpy", "matplotlib")},
        "machine": machine(),
        "seeds": [options.seed],
        "identifiability": {
            "delta": Family.delta,
            "epsilon": Family.epsilon,
            "routed": [_routed(Family(*shape)) for shape in ROUTED],
            "conditions": [_conditions(Family(*shape)) for shape in CHECKED],
        },
        "recovery": {
            "random_trees": [_random_trees(strength, options.seed) for strength in STRENGTHS],
            "needle": [_needle(distance) for distance in (0.1, 0.01, 0.001)],
            "unnormalised": _unnormalised(),
            "demo": _demo(),
        },
    }
    record["wall_seconds"] = round(time.monotonic() - began, 1)
    write_json(options.output, record)
    _draw(options.images / "theory_identifiability.svg", _draw_identifiability, record["identifiability"])
    _draw(options.images / "theory_recovery.svg", _draw_recovery, record["recovery"])
    print(f"{options.output} and two figures in {options.images} are written")


def _routed(family: Family) -> dict[str, Any]:
    """The best router's value. A deterministic router is a path, so the means and minima below are over secrets."""
    values = np.stack([path_values(tree, family.experts) for tree in family.trees()])
    return {
        "experts": family.experts,
        "horizon": family.horizon,
        "secrets": len(values),
        "v_star": family.tree(next(family.secrets())).best,
        "right_path": _rounded(values.max(0).min()),
        "best_mean": _rounded(values.mean(0).max()),
        "worst_mean": _rounded(values.mean(0).min()),
        "best_deterministic_worst": _rounded(values.min(0).max()),
        "limit": family.limit,
    }


def _conditions(family: Family) -> dict[str, Any]:
    """The premises of the theorem over all secrets, and from when on a router can tell secrets apart."""
    measured = [_premises(family, secret) for secret in family.secrets()]
    first = family.tree(next(family.secrets()))
    same = [
        all(np.array_equal(first.q[t], tree.q[t]) for tree in family.trees())
        for t in (*range(family.half), family.half)
    ]
    without_epsilon = Family(family.experts, family.horizon, epsilon=0.0)
    return {
        "experts": family.experts,
        "horizon": family.horizon,
        **{name: _rounded(max(each[name] for each in measured)) for name in measured[0]},
        "same_before_half": all(same[:-1]),
        "same_at_half": same[-1],
        "near_optimal_gap_at_epsilon_0": _premises(without_epsilon, next(family.secrets()))["near_optimal_gap"],
    }


def _premises(family: Family, secret: tuple[int, ...]) -> dict[str, float]:
    tree = family.tree(secret)
    losses = {"optimal_gap": 0.0, "near_optimal_gap": family.delta, "gap_anywhere": np.inf}
    gaps = {name: largest_gap(tree, family.experts, loss=loss) for name, loss in losses.items()}
    return {"best_route_loss": tree.best - float(path_values(tree, family.experts).max())} | gaps


def _random_trees(strength: float, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng([seed, round(10 * strength)])
    measured = [_random_recovery(generator, strength) for _ in range(TREES_PER_STRENGTH)]
    gaps, bounds, best = (np.array(column) for column in zip(*measured, strict=True))
    return {
        "strength": strength,
        "trees": TREES_PER_STRENGTH,
        "violations": int((gaps > bounds + 1e-9).sum()),
        "largest_ratio": round(float((gaps / bounds).max()), 3),
        "median_ratio": round(float(np.median(gaps / bounds)), 3),
        "bounds_below_v_star": int((bounds < best).sum()),
        "gaps": [float(f"{gap:.4g}") for gap in gaps],
        "bounds": [float(f"{bound:.4g}") for bound in bounds],
    }


def _random_recovery(generator: np.random.Generator, strength: float) -> tuple[float, float, float]:
    """Gap, bound and V* of one tree: 2 to 4 tokens, 1 to 5 steps, 1 to 3 experts, eta from 0.01 to 0.5."""
    tree = random_tree(generator, int(generator.integers(2, 5)), int(generator.integers(1, 6)))
    optimum = greedy(tree.q)
    router = noisy_router(generator, optimum, strength)
    experts = [random_expert(generator, tree, generator.uniform(0.01, 0.5)) for _ in range(generator.integers(1, 4))]
    found = recover(tree, optimum, [fuse(expert, router) for expert in experts])
    return found.gap, found.bound, tree.best


def _needle(distance: float) -> dict[str, float]:
    tree = needle_tree(vocabulary=3, horizon=6)
    policy = [soften(np.zeros(level.shape[:-1], int), 3, distance) for level in tree.rewards]
    found = recover(tree, greedy(tree.q), [policy])
    ratio = found.gap / found.bound
    return {"delta": distance, "gap": _rounded(found.gap), "bound": _rounded(found.bound), "ratio": _rounded(ratio)}


def _unnormalised() -> dict[str, float]:
    """One token, reward on the first: (6) with the product of the two distributions as it stands, not normalised."""
    tree, few = needle_tree(vocabulary=3, horizon=1), 1e-3
    expert, router = np.array([few, 1 - 2 * few, few]), np.array([few, few, 1 - 2 * few])
    optimum = greedy(tree.q)
    gap = recover(tree, optimum, [fuse([expert], [router])]).gap
    printed = float(total_variation(expert * router, optimum[0]))
    return {"gap": _rounded(gap), "bound": _rounded(printed), "ratio": _rounded(gap / printed)}


def _demo() -> dict[str, Any]:
    """Value over the router's margin, a mean over secrets; the lowest numbered of equally near experts is used."""
    edge = threshold(DEMO.experts, ETA)
    margins = sorted([*np.linspace(0, 10, 41).tolist(), edge - 1e-6, edge + 1e-6])
    points = [_demo_point(margin) for margin in margins]
    return {
        "experts": DEMO.experts,
        "horizon": DEMO.horizon,
        "eta": ETA,
        "threshold": _rounded(edge),
        "v_star": float(DEMO.horizon),
        "best_router_mean": _routed(DEMO)["best_mean"],
        "margins": [_rounded(margin) for margin in margins],
        **{name: [point[name] for point in points] for name in points[0]},
    }


def _demo_point(margin: float) -> dict[str, float]:
    router, optimum = favouring_router(DEMO, margin), free_policy(DEMO)
    fused = [fuse(expert, router) for expert in softened_experts(DEMO, ETA)]
    found = [(recover(tree, optimum, fused), value(tree, greedy(fused[0]))) for tree in DEMO.trees()]
    return {
        "sampled": _rounded(DEMO.horizon - np.mean([recovery.gap for recovery, _ in found])),
        "guaranteed": _rounded(DEMO.horizon - max(recovery.bound for recovery, _ in found)),
        "greedy": _rounded(np.mean([worth for _, worth in found])),
    }


def _rounded(number: Any) -> float:
    return round(float(number), 6)


def _draw(path: Path, draw: Any, record: dict[str, Any]) -> None:
    """The same bytes from the same record: no date, no random ids; text as outlines, so no font is needed."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "fusionroute", "axes.spines.top": False, "axes.spines.right": False}):
        figure = draw(plt, record)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        plt.close(figure)
    write_text(path, "\n".join(line.rstrip() for line in svg.getvalue().splitlines()) + "\n")


def _draw_identifiability(plt: Any, record: dict[str, Any]) -> Any:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    two, three = ([row for row in record["routed"] if row["experts"] == experts] for experts in (2, 3))
    horizons = [row["horizon"] for row in two]
    axes.plot(horizons, [row["v_star"] for row in two], "o-", color=GREY, label="best response, V* = T")
    axes.plot(horizons, [row["limit"] for row in two], "--", color=RED, label="limit of the theorem, T/2 + 2")
    for rows, mark, colour in ((two, "s-", BLUE), (three, "^-", ORANGE)):
        means = [row["best_mean"] for row in rows]
        label = f"best router, mean over secrets, {rows[0]['experts']} experts"
        axes.plot([row["horizon"] for row in rows], means, mark, color=colour, label=label)
    worst = [row["best_deterministic_worst"] for row in two]
    axes.plot(horizons, worst, "x:", color=GREEN, markersize=8, label="best deterministic router, worst secret")
    axes.set(xlabel="tokens of a response, T", ylabel="total reward", xticks=horizons, ylim=(0, max(horizons) + 0.5))
    axes.legend(frameon=False)
    return figure


def _draw_recovery(plt: Any, record: dict[str, Any]) -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")
    _draw_bound(plt, left, record["random_trees"])
    _draw_demo(right, record["demo"])
    return figure


def _draw_bound(plt: Any, axes: Any, groups: list[dict[str, Any]]) -> None:
    colours = plt.get_cmap("viridis_r")(np.linspace(0.1, 1, len(groups)))
    for group, colour in zip(groups, colours, strict=True):
        label = f"{group['strength']:.0f} nats"
        axes.scatter(group["bounds"], group["gaps"], s=12, color=colour, label=label, linewidths=0)
    edges = [min(min(group["bounds"]) for group in groups), max(max(group["bounds"]) for group in groups)]
    axes.plot(edges, edges, "--", color=RED, label="equality")
    axes.set(xscale="log", yscale="log", title="Random trees: what is lost, and the bound (6)")
    axes.set(xlabel=r"bound, $T \cdot Q_{max} \cdot \Delta$", ylabel=r"lost value, $V^* - V^\pi$")
    axes.legend(**BELOW, title="router's strength")


def _draw_demo(axes: Any, demo: dict[str, Any]) -> None:
    axes.axhline(demo["v_star"], color=GREY, label="best response, V*")
    axes.plot(demo["margins"], demo["sampled"], color=BLUE, label="fused, drawn at random")
    axes.plot(demo["margins"], demo["greedy"], color=ORANGE, label="fused, greedy")
    axes.axhline(demo["best_router_mean"], color=GREEN, linestyle=":", label="best router without fusion")
    axes.plot(demo["margins"], demo["guaranteed"], "--", color=RED, label="guaranteed by (6)")
    edge = demo["threshold"]
    axes.axvline(edge, color=GREY, linewidth=0.8, linestyle=":")
    axes.annotate(f"threshold {edge:.2f}", (edge, 0.15), xytext=(-4, 0), textcoords="offset points", ha="right")
    axes.set(xlabel="router's margin for the free token, nats", ylabel="total reward, mean over secrets")
    axes.set(title="The worlds of Theorem 4.3, fused", xlim=(0, 10), ylim=(0, demo["v_star"] + 0.5))
    axes.legend(**BELOW | {"ncols": 3})


def render(record: dict[str, Any]) -> str:
    """Markdown tables, and how the numbers were made."""
    found, recovery, used = record["identifiability"], record["recovery"], record["versions"]
    tables = [
        _table(ROUTED_COLUMNS, found["routed"]),
        _table(CONDITION_COLUMNS, found["conditions"]),
        _table(TREE_COLUMNS, recovery["random_trees"]),
        _table(NEEDLE_COLUMNS, recovery["needle"]),
        _table(DEMO_COLUMNS, _demo_rows(recovery["demo"])),
    ]
    made = (
        f"Δ = {found['delta']}, ε = {found['epsilon']}, η = {recovery['demo']['eta']}, seed {record['seeds'][0]}. "
        f"fusionroute {used['fusionroute']} ({record['commit']}), numpy {used['numpy']}."
    )
    return "\n\n".join([*tables, made])


def _demo_rows(demo: dict[str, Any]) -> list[dict[str, float]]:
    """Even margins, and both sides of the threshold."""
    rows = [
        {key: demo[key][at] for key in DEMO_COLUMNS}
        for at, margin in enumerate(demo["margins"])
        if margin % 2 == 0 or abs(margin - demo["threshold"]) < 1e-5
    ]
    return rows


def _table(columns: dict[str, str], rows: list[dict[str, Any]]) -> str:
    body = [[f"{row[key]:.7g}" for key in columns] for row in rows]
    return "\n".join(_row(cells) for cells in (columns.values(), ["---"] * len(columns), *body))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
