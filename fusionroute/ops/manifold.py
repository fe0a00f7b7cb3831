"""RoMA's manifold term (arXiv 2511.07419, Eqs. 5 to 7), and how alike two spaces are. Tensors in, tensors out."""

from torch import Tensor

from fusionroute.ops.nearest import nearest


def similarity(sq_distance: Tensor, sigma: float) -> Tensor:
    """Similarity exp(−‖E(x_i) − E(x_j)‖² / 2σ²), Eq. (5), of squared distances of any shape."""
    return (-sq_distance / (2 * sigma**2)).exp()


def edge_weights(similarity: Tensor) -> Tensor:
    """W_ij = sim_ij / Σ_j' sim_ij', Eq. (6): ``[..., k]``; an empty neighbourhood (all 0) stays 0."""
    total = similarity.sum(-1, keepdim=True)
    return similarity / total.where(total > 0, 1.0)


def manifold_loss(routing: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """L_man(i) = Σ_j W_ij ‖r_i − r_j‖², Eq. (7): a sum over neighbours, layers and experts.

    Args:
        routing: r_i, the routing of the chosen layers one after another, ``[..., D]`` with D = layers x experts.
        targets: r_j of each neighbour, ``[..., k, D]``, constants.
        weights: W_ij, ``[..., k]``; 0 where there is no neighbour.

    Returns:
        ``[...]``, between 0 and two per layer.
    """
    return (weights * (routing.unsqueeze(-2) - targets).square().sum(-1)).sum(-1)


def cka(a: Tensor, b: Tensor) -> Tensor:
    """Centred kernel alignment of two similarity matrices over the same rows: tr(AHBH) / √(tr(AHAH) tr(BHBH)).

    H = I − 11ᵀ/n. With A = RRᵀ and R the rows r_i it is linear CKA of the routing, which rotations, shifts and one
    scale of R leave as it is.

    Args:
        a, b: symmetric ``[n, n]``.

    Returns:
        float64 scalar, between 0 and 1 for kernels; NaN if all rows of one are alike: there is nothing to align.
    """
    a, b = _centred(a.double()), _centred(b.double())
    return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


def _centred(gram: Tensor) -> Tensor:
    """HAH."""
    return gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()


def neighbour_overlap(x: Tensor, y: Tensor, k: int) -> Tensor:
    """Share of the ``k`` nearest neighbours of a row in one space that are so in the other; mean over rows.

    By chance it is k / (n − 1).

    Args:
        x, y: the same rows in two spaces, ``[n, d]`` and ``[n, e]``, with n > k.
    """
    assert len(x) == len(y) > k, f"{len(x)} and {len(y)} rows cannot have {k} neighbours in common"
    ours, theirs = (nearest(rows, rows, k, exclude_self=True).index for rows in (x, y))
    return (ours[:, :, None] == theirs[:, None, :]).any(-1).double().mean()
