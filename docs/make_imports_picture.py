"""The picture of the imports in architecture.md: who imports whom, one square for each pair of rooms.

python docs/make_imports_picture.py docs/images/imports.svg

Rooms stand in the order of the import rule, so an import against it would stand above the diagonal.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt

PACKAGE = Path(__file__).parents[1] / "fusionroute"
ORDER = [
    "cli", "calibration", "server", "vllm_plugin", "zoo", "team", "ensemble", "answering", "training",
    "evaluation", "methods", "moe", "terminal", "engine", "models", "ops", "theory", "config", "environment",
    "interrupt", "output", "progress", "rows", "errors",
]  # fmt: skip


def imports() -> Counter[tuple[str, str]]:
    """How many files of one room import from another."""
    found: Counter[tuple[str, str]] = Counter()
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.update({(room, target) for target in _imported(path) if target in ORDER and target != room})
    return found


def _imported(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {module.split(".")[1] for module in modules if module.startswith("fusionroute.")}


def draw(picture: str) -> None:
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fusionroute", "font.family": "sans-serif"})
    figure, axes = plt.subplots(figsize=(9, 8))
    for (room, target), count in sorted(imports().items()):
        if room in ORDER:
            x, y = ORDER.index(target), ORDER.index(room)
            axes.text(x, y, str(count), ha="center", va="center", fontsize=8, color="white" if count > 8 else "#333")
            axes.add_patch(
                plt.Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, color=plt.cm.Blues(0.15 + min(count, 16) / 20))
            )
    axes.plot([-0.5, len(ORDER) - 0.5], [-0.5, len(ORDER) - 0.5], color="#bbb", linewidth=0.8)
    axes.set(
        xlim=(-0.5, len(ORDER) - 0.5),
        ylim=(len(ORDER) - 0.5, -0.5),
        ylabel="files of this room that import",
        aspect="equal",
    )
    axes.set_title("… from this one", fontsize=10)
    axes.set_xticks(range(len(ORDER)), ORDER, rotation=60, ha="left")
    axes.set_yticks(range(len(ORDER)), ORDER)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.savefig(picture, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    draw(sys.argv[1])
