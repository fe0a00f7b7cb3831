"""Do questions that are alike take like routes? The same questions before and after their router was trained.

Every measure comes with what each question contributes, so that whoever reports it can resample questions. Nothing
here knows of a report.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionroute.errors import DataError
from fusionroute.moe.pathways.pathways import Pathways
from fusionroute.moe.questions.questions import Question
from fusionroute.ops.manifold import similarity
from fusionroute.ops.nearest import nearest

BLOCK = 256  # rows of an n x n matrix at a time
ROUNDING = 1e-24  # mean square of what is left of the similarities, at most 1, where nothing is left but rounding
LEAST = 4  # questions; with fewer the unbiased estimators are not defined
Kernel = Callable[[Tensor], Tensor]  # numbers of some rows to those rows of a similarity matrix, float64 [rows, n]


@dataclass(frozen=True)
class Measure:
    """One number before and after, as contributions of the n questions.

    Attributes:
        before, after: float64 ``[n]``; their means are the measured values.
        chance: what routing that has nothing to do with the questions would score, before and after.
    """

    before: Tensor
    after: Tensor
    chance: tuple[float, float]

    @property
    def values(self) -> tuple[float, float]:
        return float(self.before.mean()), float(self.after.mean())


@dataclass(frozen=True)
class Alignment:
    """How well routing follows the pretrained model's embeddings, before and after.

    Attributes:
        cka: centred kernel alignment of routing, ⟨r_i, r_j⟩, with the similarity of Eq. (5), as `ops.manifold.cka` has
            it. Few questions make it too high, for each is its own nearest neighbour in both spaces.
        debiased_cka: the same without what a question has in common with itself, by the unbiased estimators of Song et
            al. (2012); near what CKA would be over very many questions, and 0 by chance. It may be below 0.
        overlap: share of a question's ``k`` nearest by embedding that are among its ``k`` nearest by routing.
        separation: share of a question's ``k`` nearest by routing that are of its task; None for fewer than two tasks.
        sigma: the bandwidth of Eq. (5): the median distance to the ``k`` nearest by embedding, unless given.
    """

    cka: Measure
    debiased_cka: Measure
    overlap: Measure
    separation: Measure | None
    n: int
    k: int
    sigma: float


def alignment(before: Pathways, after: Pathways, *, k: int = 10, sigma: float | None = None) -> Alignment:
    """Hold the routing of two recordings of the same questions against the first one's embeddings.

    Args:
        before: recorded with the pretrained model.
        after: the same questions in the same order, recorded with the trained one; its embeddings are not looked at.

    Raises:
        DataError: the recordings are of different questions or layers, there are too few questions for ``k``
            neighbours, or all are embedded or routed alike.
    """
    check_same_questions(before, after)
    n = len(before)
    if not 0 < k < n or n < LEAST:
        raise DataError(
            f"{n:,} questions cannot have {k} nearest neighbours each; record more questions, or take k < n"
        )
    embeddings, routes = before.embeddings, [each.routing.flatten(1) for each in (before, after)]
    for rows in routes:
        if (rows == rows[0]).all():
            raise DataError("all questions are routed alike, so there is nothing to align; record other questions")
    found = nearest(embeddings, embeddings, k, exclude_self=True)
    sigma = sigma or _bandwidth(found.square)
    kernels = [_linear(each) for each in routes], _gaussian(embeddings, sigma)
    near = [nearest(each, each, k, exclude_self=True).index for each in routes]
    return Alignment(
        _cka(*kernels, _centred, n),
        _cka(*kernels, _u_centred, n),
        _overlap(near, found.index, n),
        _separation(near, before.tasks),
        n,
        k,
        sigma,
    )


def check_same_questions(before: Pathways, after: Pathways) -> None:
    """Raise `DataError`, naming what differs, unless two recordings are of the same questions, prompts and layers."""
    ours, theirs = (" x ".join(map(str, each.routing.shape[1:])) for each in (before, after))
    if ours != theirs or before.settings.get("layers") != after.settings.get("layers"):
        raise DataError(
            f"before has routing of {ours} (layers x experts; {_layers(before)}), after of {theirs} "
            f"({_layers(after)}); record the same layers"
        )
    if len(before) != len(after):
        raise DataError(f"before has {len(before):,} questions, after {len(after):,}; record the same ones")
    for number, (asked, asked_again) in enumerate(zip(before.questions, after.questions, strict=True), start=1):
        if asked != asked_again:
            raise DataError(
                f"question {number} is {_short(asked)} before and {_short(asked_again)} after; "
                "record the same questions in the same order"
            )
    if before.settings.get("tokens") != after.settings.get("tokens"):
        raise DataError(
            "the same questions were asked in other tokens after than before; record both in one prompt format"
        )


def _layers(pathways: Pathways) -> str:
    return ", ".join(pathways.settings.get("layers", ())) or "unnamed"


def _short(question: Question) -> str:
    text = question.text
    said = repr(text if len(text) <= 60 else text[:60] + "…")
    return said + (f" of {question.task!r}" if question.task else "")


def _bandwidth(square: Tensor) -> float:
    sigma = float(square.sqrt().quantile(0.5))
    if sigma == 0:
        raise DataError(
            "the median distance to the nearest questions is 0, so it is no bandwidth: most questions stand there "
            "several times, or their embeddings are all alike; remove the copies, or give sigma"
        )
    return sigma


def _linear(rows: Tensor) -> Kernel:
    rows = rows.double() - rows.double().mean(0)
    return lambda some: rows[some] @ rows.T


def _gaussian(rows: Tensor, sigma: float) -> Kernel:
    rows = rows.double()
    return lambda some: similarity(torch.cdist(rows[some], rows).square(), sigma)


def _centred(kernel: Kernel, n: int) -> Kernel:
    """HKH."""
    means = torch.cat([kernel(some).mean(1) for some in torch.arange(n).split(BLOCK)])
    return lambda some: kernel(some) - means[some, None] - means + means.mean()


def _u_centred(kernel: Kernel, n: int) -> Kernel:
    """Without the diagonal, and rows still sum to 0 (Székely and Rizzo, 2014): the bias of HSIC is gone."""
    sums = torch.cat([_without_own(kernel(some), some).sum(1) for some in torch.arange(n).split(BLOCK)])

    def centred(some: Tensor) -> Tensor:
        rows = _without_own(kernel(some), some) - (sums[some, None] + sums) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
        return _without_own(rows, some)

    return centred


def _without_own(rows: Tensor, some: Tensor) -> Tensor:
    """Some rows of a matrix with 0 on its diagonal."""
    return rows.scatter(1, some[:, None], 0.0)


def _cka(routed: Sequence[Kernel], embedded: Kernel, centre: Callable[[Kernel, int], Kernel], n: int) -> Measure:
    theirs = centre(embedded, n)
    (before, low), (after, high) = (_cka_by_question(centre(ours, n), theirs, n) for ours in routed)
    return Measure(before, after, (low, high))


def _cka_by_question(a: Kernel, b: Kernel, n: int) -> tuple[Tensor, float]:
    """CKA of two centred kernels as one value per question, and what CKA is on average if rows are paired at random.

    A question's value is CKA plus its influence: n times what CKA moves, to first order, if the question weighs 1/n
    more. Their mean is CKA itself. Resampling the questions themselves would not do: one that is drawn twice is its
    own nearest neighbour in both spaces, which pushes every draw above what was measured.
    """
    sums, traces = [], []
    for some in torch.arange(n).split(BLOCK):
        ours, theirs = a(some), b(some)
        sums.append(torch.stack([(x * y).sum(1) for x, y in ((ours, ours), (theirs, theirs), (ours, theirs))]))
        traces.append(torch.stack([each[torch.arange(len(some)), some].sum() for each in (ours, theirs)]))
    aa, bb, ab = torch.cat(sums, 1)
    scale = (aa.sum() * bb.sum()).sqrt()
    if aa.sum() == 0 or bb.sum() <= n * n * ROUNDING:
        raise DataError(
            "all questions are equally far from each other, so there is nothing to align; record more of them"
        )
    cka = ab.sum() / scale
    values = cka + n * (2 * ab / scale - cka * (aa / aa.sum() + bb / bb.sum()))
    chance = torch.stack(traces).sum(0).prod() / (n - 1) / scale
    return values, float(chance)


def _overlap(near: Sequence[Tensor], embedded: Tensor, n: int) -> Measure:
    k = embedded.shape[1]
    before, after = ((each[:, :, None] == embedded[:, None]).any(-1).double().mean(1) for each in near)
    return Measure(before, after, (k / (n - 1),) * 2)


def _separation(near: Sequence[Tensor], tasks: Sequence[str]) -> Measure | None:
    names = list(dict.fromkeys(tasks))
    if len(names) < 2:
        return None
    task = torch.tensor([names.index(each) for each in tasks])
    before, after = ((task[each] == task[:, None]).double().mean(1) for each in near)
    chance = float(((task.bincount()[task] - 1) / (len(tasks) - 1)).mean())
    return Measure(before, after, (chance, chance))
