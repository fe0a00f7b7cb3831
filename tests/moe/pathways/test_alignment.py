"""Alignment of routing with embeddings: each measure against its definition, and how sure it is against simulation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fusionroute.errors import DataError
from fusionroute.moe.pathways import alignment as module
from fusionroute.moe.pathways.alignment import Alignment, alignment
from fusionroute.moe.pathways.pathways import Pathways
from fusionroute.moe.questions.questions import Question
from fusionroute.ops.manifold import cka, neighbour_overlap, similarity
from tiny_pathways import pathways, recorded

Pair = tuple[Pathways, Pathways]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return pathways()


@pytest.fixture(scope="module")
def found(pair: Pair) -> Alignment:
    return alignment(*pair, k=5)


def kernels(recording: Pathways, embeddings: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    rows = recording.routing.flatten(1).double()
    return rows @ rows.T, similarity(torch.cdist(embeddings.double(), embeddings.double()).square(), sigma)


def test_the_measures_are_those_of_the_pure_maths(pair: Pair, found: Alignment) -> None:
    embeddings = pair[0].embeddings
    for recording, by_cka, overlap in zip(pair, found.cka.values, found.overlap.values, strict=True):
        assert by_cka == pytest.approx(float(cka(*kernels(recording, embeddings, found.sigma))), abs=1e-12)
        assert overlap == pytest.approx(float(neighbour_overlap(recording.routing.flatten(1), embeddings, 5)))
    assert found.cka.values[1] > found.cka.values[0] + 0.1
    distances = torch.cdist(embeddings.double(), embeddings.double()).sort(1).values[:, 1:6]
    assert found.sigma == pytest.approx(float(distances.quantile(0.5)), rel=1e-6)


def test_the_debiased_measure_is_song_s(pair: Pair, found: Alignment) -> None:
    """HSIC = [tr(KL) + 1ᵀK1·1ᵀL1/((n−1)(n−2)) − 2·1ᵀKL1/(n−2)] / (n(n−3)), with diagonals of 0."""

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        n, k, m = len(k), k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
        whole = (k @ m).trace() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
        return whole / (n * (n - 3))

    for recording, value in zip(pair, found.debiased_cka.values, strict=True):
        a, b = kernels(recording, pair[0].embeddings, found.sigma)
        assert value == pytest.approx(float(hsic(a, b) / (hsic(a, a) * hsic(b, b)).sqrt()), abs=1e-12)


def test_chance_is_what_random_pairings_give() -> None:
    before, after = pathways(40)
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(150):
        order = torch.randperm(40, generator=generator)
        shuffled = replace(before, routing=before.routing[order])
        values.append([each.values[0] for each in _measures(alignment(shuffled, after, k=5))])
    expected = [each.chance[0] for each in _measures(alignment(before, after, k=5))]
    assert torch.tensor(values).mean(0).tolist() == pytest.approx(expected, abs=0.012)
    assert expected[0] > 0.1  # which is why the debiased one is told beside it
    assert expected[1] == 0


def _measures(found: Alignment) -> list[module.Measure]:
    assert found.separation is not None
    return [found.cka, found.debiased_cka, found.overlap, found.separation]


def test_separation_by_hand() -> None:
    """Two routes of two experts; three questions of one task go one way, its fourth with the other task's two."""
    spots = [0.90, 0.89, 0.87, 0.10, 0.11, 0.14]
    routing = torch.tensor([[[spot, 1 - spot]] for spot in spots])
    questions = [Question(f"q{at}", "a", (), task) for at, task in enumerate(["x", "x", "x", "x", "y", "y"])]
    before = recorded(routing, torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), questions)
    found = alignment(before, before, k=2).separation
    assert found is not None
    assert found.before.tolist() == [1, 1, 1, 0, 0.5, 0.5]
    assert found.chance[0] == pytest.approx((4 * 3 + 2 * 1) / (6 * 5))


def test_one_task_has_nothing_to_separate() -> None:
    assert alignment(*pathways(20, ("only",)), k=3).separation is None


@pytest.mark.parametrize("name", ["cka", "debiased_cka"])
def test_contributions_are_what_leaving_a_question_out_changes(name: str) -> None:
    before, after = pathways(200)
    whole = alignment(before, after, k=5)
    measure = getattr(whole, name)
    left_out = []
    for place in range(0, 200, 10):
        rest = [at for at in range(200) if at != place]
        parts = [
            recorded(each.routing[rest], each.embeddings[rest], [each.questions[at] for at in rest])
            for each in (before, after)
        ]
        without = getattr(alignment(*parts, k=5, sigma=whole.sigma), name).values[0]
        left_out.append(measure.values[0] + 199 * (measure.values[0] - without))
    ours = measure.before[::10]
    correlation = torch.corrcoef(torch.stack([ours, torch.tensor(left_out)]))[0, 1]
    assert correlation > 0.98
    assert float(ours.std()) == pytest.approx(float(torch.tensor(left_out).std()), rel=0.1)


def test_the_debiased_measure_is_as_sure_as_it_says() -> None:
    """Over many draws of questions: its mean is that of a large draw, its spread what the contributions say."""
    large = alignment(*pathways(1500, seed=100), k=5, sigma=3.0)
    small = [alignment(*pathways(60, seed=seed), k=5, sigma=3.0).debiased_cka for seed in range(120)]
    for at in (0, 1):
        values = torch.tensor([each.values[at] for each in small])
        stated = torch.tensor([float((each.before, each.after)[at].std()) / 60**0.5 for each in small])
        assert float(values.mean()) == pytest.approx(large.debiased_cka.values[at], abs=0.02)
        assert float(stated.mean()) == pytest.approx(float(values.std()), rel=0.2)


def test_only_the_first_recording_s_embeddings_count(pair: Pair, found: Alignment) -> None:
    before, after = pair
    again = alignment(before, replace(after, embeddings=torch.full_like(after.embeddings, torch.nan)), k=5)
    assert torch.equal(again.cka.after, found.cka.after)
    same = alignment(before, before, k=5)
    assert all(torch.equal(each.before, each.after) for each in _measures(same))


def test_turned_and_scaled_embeddings_change_nothing(pair: Pair, found: Alignment) -> None:
    before, after = pair
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(3)))[0]
    turned = replace(before, embeddings=3 * before.embeddings @ turn + 5)
    for ours, theirs in zip(_measures(found), _measures(alignment(turned, after, k=5)), strict=True):
        assert theirs.values == pytest.approx(ours.values, abs=1e-5)


def test_blocks_do_not_matter(pair: Pair, found: Alignment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 7)
    for ours, theirs in zip(_measures(found), _measures(alignment(*pair, k=5)), strict=True):
        assert torch.allclose(ours.before, theirs.before, atol=1e-12)
        assert theirs.chance == pytest.approx(ours.chance)


def _renamed(recording: Pathways) -> Pathways:
    asked = list(recording.questions)
    asked[3] = replace(asked[3], prompt="another one")
    return replace(recording, questions=asked)


def _cut(recording: Pathways) -> Pathways:
    return recorded(recording.routing[:-1], recording.embeddings[:-1], recording.questions[:-1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_renamed, "question 4 is 'question 3' of .* before and 'another one' of .* after"),
        (_cut, "before has 60 questions, after 59"),
        (lambda each: replace(each, routing=each.routing[:, :1]), "before has routing of 2 x 8 .*, after of 1 x 8"),
        (lambda each: replace(each, settings={**each.settings, "layers": ["a", "b"]}), r"model\.layers\.3.*\(a, b\)"),
        (lambda each: replace(each, settings={**each.settings, "tokens": "other"}), "one prompt format"),
        (lambda each: replace(each, routing=torch.full_like(each.routing, 1 / 7)), "all questions are routed alike"),
    ],
)
def test_recordings_that_do_not_belong_together(pair: Pair, change: Callable[[Pathways], Pathways], said: str) -> None:
    with pytest.raises(DataError, match=said):
        alignment(pair[0], change(pair[1]), k=5)


@pytest.mark.parametrize(("n", "options"), [(8, {"k": 8}), (8, {"k": 0}), (3, {"k": 1})])
def test_too_few_questions(n: int, options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"{n} questions cannot have {options['k']} nearest"):
        alignment(*pathways(n), **options)


def test_embeddings_that_are_all_alike() -> None:
    before, after = pathways(20)
    with pytest.raises(DataError, match="median distance to the nearest questions is 0"):
        alignment(replace(before, embeddings=torch.ones(20, 4)), after, k=3)
    with pytest.raises(DataError, match="equally far from each other"):
        alignment(replace(before, embeddings=torch.eye(20)), after, k=3)
