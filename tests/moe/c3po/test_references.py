"""Neighbours of an input: answered correctly, no duplicate of it, near in what it asks or in how it is routed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_moe
import tiny_rerouting
from fusionroute.errors import DataError
from fusionroute.moe.c3po.references import References
from fusionroute.moe.neighbours import neighbours
from fusionroute.moe.pathways.pathways import Pathways
from fusionroute.moe.questions.questions import Encoded, Question
from fusionroute.ops.nearest import nearest, within

POINTS = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 4.0], [8.0, 0.0], [0.0, 9.0]])


def by_hand(embeddings: Tensor, correct: list[bool], embedder: str = "some/embedder") -> tuple[Pathways, list[Encoded]]:
    n = len(embeddings)
    pathways = Pathways(
        routing=tiny_moe.routing(n, 2, seed=1),
        correct=torch.tensor(correct),
        loss=torch.zeros(n),
        embeddings=embeddings,
        questions=[Question(f"question {at}", "yes") for at in range(n)],
        settings={"embedder": embedder},
    )
    return pathways, [Encoded([5 + at], ([2],), 0) for at in range(n)]


def references(correct: list[bool] | None = None, **options: object) -> References:
    return References(*by_hand(POINTS, correct or [True] * 5), **options)  # type: ignore[arg-type]


def test_nearest_questions_weigh_by_the_gaussian_kernel() -> None:
    found = references(k=2, sigma=2.0, duplicate=None).by_question(torch.tensor([[0.0, 0.0], [8.0, 1.0]]))
    assert found.index.tolist() == [[0, 1], [3, 2]]
    far = torch.tensor([-1 / 8, -34 / 8]).exp()  # squared distances 1 and 5² + 3², over 2σ²
    wanted = torch.stack([torch.tensor([0.5, 0.5]), far / far.sum()])
    torch.testing.assert_close(found.weight, wanted)


def test_only_those_answered_correctly_are_referred_to() -> None:
    known = references([False, True, True, False, True], k=3, sigma=100.0, duplicate=None)
    found = known.by_question(torch.zeros(1, 2))
    assert [known.encoded[at].prompt for at in found.index[0].tolist()] == [[6], [7], [9]]
    assert len(known) == 3


def test_duplicates_of_an_input_are_dropped_for_it_alone() -> None:
    """(0, 2) points where (0, 1) and (0, 9) do; the cosine with (3, 4) is 0.8."""
    inputs = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    found = references(k=1, sigma=1.0).by_question(inputs)
    assert found.index.tolist() == [[1], [0]]
    allowed = references(k=1, sigma=1.0, duplicate=None).by_question(inputs)
    assert allowed.index.tolist() == [[0], [1]]
    strict = references(k=1, sigma=1.0, duplicate=0.75).by_question(inputs)
    assert strict.index.tolist() == [[1], [0]]


def test_an_input_with_nothing_but_duplicates_has_no_neighbours() -> None:
    points = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    known = References(*by_hand(points, [True, True]), k=2, sigma=1.0)
    found = known.by_question(torch.tensor([[0.0, 5.0], [1.0, 0.0]]))
    assert found.weight[0].tolist() == [0, 0]
    assert float(found.weight[1].sum()) == pytest.approx(1)


def test_cosines_of_hidden_states_count_from_their_mean() -> None:
    """All lie to one side, so seen from the origin everything is a duplicate of everything."""
    shifted = POINTS + 1000
    known = References(*by_hand(shifted, [True] * 5, embedder="self"), k=2, sigma=1.0)
    found = known.by_question(shifted[:1] + 0.1)
    assert 0 not in found.index[0].tolist()
    assert float(found.weight.sum()) == pytest.approx(1)


def test_neighbours_in_routing_are_the_nearest_of_all_layers_together() -> None:
    known = references(k=2, sigma=0.5, duplicate=None)
    queries = tiny_moe.routing(3, 2, seed=9)
    found = known.by_routing(queries, torch.zeros(3, 2))
    distance = (queries[:, None] - known.routing).square().sum((-2, -1))
    nearest = distance.topk(2, largest=False)
    assert torch.equal(found.index, nearest.indices)
    torch.testing.assert_close(found.weight, (-nearest.values / 0.5).softmax(1))


def test_the_bandwidth_is_the_references_own_median_distance() -> None:
    """Of each point to its nearest other one: √2, √2, √18, √41 and √34."""
    known = references(k=1, duplicate=None)
    distance = torch.cdist(POINTS, POINTS).fill_diagonal_(torch.inf)
    assert (
        known.by_question(torch.zeros(1, 2)).sigma
        == pytest.approx(float(distance.amin(1).median()))
        == pytest.approx(18**0.5)
    )


def test_a_search_does_not_depend_on_the_other_inputs() -> None:
    known = references(k=3)
    inputs = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)) * 4
    together = known.by_question(inputs)
    for row in range(6):
        alone = known.by_question(inputs[row : row + 1])
        weight = torch.zeros(5).index_add(0, alone.index[0], alone.weight[0])
        assert torch.equal(weight, torch.zeros(5).index_add(0, together.index[row], together.weight[row]))


@pytest.mark.parametrize("options", [{"k": 3, "sigma": 1.5}, {"epsilon": 0.4, "sigma": 2.0}])
def test_a_batch_is_searched_at_once_and_gives_what_searches_one_by_one_give(
    options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    known = References(*by_hand(points, [True] * 40), duplicate=0.8, **options)  # type: ignore[arg-type]
    inputs = torch.cat([points[:7] * 1.1, torch.randn(5, 3, generator=torch.Generator().manual_seed(2))])
    allowed = known._allowed(inputs)
    assert len(set((~allowed).sum(1).tolist())) > 2
    searches: list[int] = []

    def noted(search: Callable[..., Any]) -> Callable[..., Any]:
        def noting(queries: Tensor, *args: Any, **rest: Any) -> Any:
            searches.append(len(queries))
            return search(queries, *args, **rest)

        return noting

    monkeypatch.setattr("fusionroute.moe.neighbours.nearest", noted(nearest))
    monkeypatch.setattr("fusionroute.moe.neighbours.within", noted(within))
    found = known.by_question(inputs)
    assert searches == [12]
    for row, query in enumerate(inputs):
        alone = neighbours(query[None], points, allowed[row], exclude_self=False, **options)  # type: ignore[arg-type]
        assert found.index[row][found.weight[row] > 0].tolist() == alone.index[0][alone.weight[0] > 0].tolist()
        torch.testing.assert_close(found.weight[row][found.weight[row] > 0], alone.weight[0][alone.weight[0] > 0])


def test_nothing_answered_correctly_is_refused_with_the_count() -> None:
    with pytest.raises(DataError, match="none of the 5 recorded questions correctly"):
        references([False] * 5)


def test_other_questions_than_the_recorded_ones_are_refused() -> None:
    pathways, encoded = by_hand(POINTS, [True] * 5)
    with pytest.raises(DataError, match="of 5 questions but 4 were given"):
        References(pathways, encoded[:4])


def test_a_real_recording_is_referred_to(tmp_path: Path) -> None:
    pathways = tiny_rerouting.recorded(tiny_moe.mixture(), tmp_path / "recorded")
    known = References(pathways, tiny_rerouting.encoded(24, 50))
    assert 3 < len(known) == int(pathways.correct.sum()) < 24
    found = known.by_question(pathways.embeddings[:4])
    assert found.index.shape == (4, 3)
    torch.testing.assert_close(found.weight.sum(1), torch.ones(4))
