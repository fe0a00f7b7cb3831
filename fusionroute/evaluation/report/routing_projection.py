"""Points of many dimensions in two: by PCA, and by t-SNE where scikit-learn is installed."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from fusionroute.errors import SettingsError

PCA, TSNE = "PCA", "t-SNE"
COMPONENTS = 8  # found together, of which two are drawn: the randomised search is surer of the first ones
LEAST_FOR_TSNE = 10  # points; with fewer there are no neighbourhoods to keep


@dataclass(frozen=True)
class Projection:
    """``points`` are float64 ``[n, 2]``; ``kept`` is the share of the variance that they hold, where that is known."""

    points: Tensor
    kept: float | None = None


def available(count: int) -> list[str]:
    """The projections that can be had of ``count`` points."""
    return [PCA, TSNE] if count >= LEAST_FOR_TSNE and find_spec("sklearn") else [PCA]


def project(rows: Tensor, how: str) -> Projection:
    """Rows ``[n, d]`` in two dimensions, the same every time.

    Raises:
        SettingsError: no projection of that name, or scikit-learn is missing.
    """
    methods: dict[str, Callable[[Tensor], Projection]] = {PCA: _pca, TSNE: _tsne}
    if how not in methods:
        raise SettingsError(f"no projection {how!r}; there are {' and '.join(methods)}")
    return methods[how](rows.double())


def turned_like(points: Tensor, others: Tensor) -> Tensor:
    """``points`` turned, or mirrored, so that they lie as near ``others`` as they can; distances stay as they are.

    Projections have no up or down of their own, and two that are compared should not differ by that alone.
    """
    u, _, v = torch.linalg.svd(points.T @ others)
    return points @ u @ v


def _pca(rows: Tensor) -> Projection:
    rows = rows - rows.mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, scale, directions = torch.pca_lowrank(rows, q=min(COMPONENTS, *rows.shape), center=False, niter=4)
    points = rows @ directions[:, :2]
    points = torch.nn.functional.pad(points, (0, 2 - points.shape[1]))
    total = rows.square().sum()
    return Projection(points, float(scale[:2].square().sum() / total) if total > 0 else None)


def _tsne(rows: Tensor) -> Projection:
    if not find_spec("sklearn"):
        raise SettingsError("t-SNE needs scikit-learn, which comes with the extra: pip install 'fusionroute[moe]'")
    manifold = import_module("sklearn.manifold")
    perplexity = min(30.0, (len(rows) - 1) / 3)
    points = manifold.TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(rows.numpy())
    found = torch.from_numpy(points).double()
    return Projection(found - found.mean(0))
