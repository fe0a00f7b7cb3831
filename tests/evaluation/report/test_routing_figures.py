"""The figures of a routing report: intervals, right answers, usage, projections, marks."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch

from fusionroute.errors import SettingsError
from fusionroute.evaluation.report import routing_panels, routing_projection
from fusionroute.evaluation.report.routing_measures import measure_rows, method_rows, resampled_means, task_rows
from fusionroute.evaluation.report.routing_panels import SIDE, Mark, Task, pictured, pictures, tasks_shown
from fusionroute.evaluation.report.routing_projection import PCA, TSNE, available, project, turned_like
from fusionroute.evaluation.report.routing_reading import read_routing
from fusionroute.evaluation.report.routing_usage import expert_ticks, heatmaps, layer_names, layer_rows, usage
from fusionroute.moe.pathways.alignment import alignment
from fusionroute.moe.questions.questions import Question
from tiny_pathways import pathways, recorded


def test_intervals_are_those_of_the_normal_distribution_where_items_are_many() -> None:
    columns = np.random.default_rng(0).normal([0.0, 3.0], [1.0, 2.0], (2000, 2))
    for estimate, column in zip(resampled_means(columns), columns.T, strict=True):
        error = column.std() / 2000**0.5
        assert estimate.value == pytest.approx(column.mean())
        assert estimate.stderr == pytest.approx(error, rel=0.05)
        assert (estimate.low, estimate.high) == pytest.approx(
            (column.mean() - 1.96 * error, column.mean() + 1.96 * error), abs=0.1 * error
        )


def test_the_difference_is_paired() -> None:
    """What before and after have in common takes no part in how sure their difference is."""
    common = np.random.default_rng(0).normal(size=300)
    before, _, difference = resampled_means(np.stack([common, common + 0.1, np.full(300, 0.1)], 1))
    assert difference.low == pytest.approx(difference.high) == pytest.approx(0.1)
    assert before.high - before.low > 0.2


def test_the_rows_hold_the_measures() -> None:
    found = alignment(*pathways(), k=5)
    rows = {row.name: row for row in measure_rows(found)}
    assert list(rows) == ["CKA", "CKA, debiased", "neighbour overlap", "task separation"]
    for name, measure in (("CKA", found.cka), ("task separation", found.separation)):
        assert measure is not None
        row = rows[name]
        assert (row.before.value, row.after.value) == pytest.approx(measure.values)
        assert row.difference.value == pytest.approx(measure.values[1] - measure.values[0])
        assert row.difference.low < row.difference.value < row.difference.high
    assert list({row.name for row in measure_rows(alignment(*pathways(20, ("one",)), k=3))} & {"task separation"}) == []


def test_right_answers_by_hand() -> None:
    questions = [Question(f"q{at}", "a", (), "xxxxyy"[at]) for at in range(6)]
    routing, embeddings = torch.rand(6, 1, 4).softmax(-1), torch.rand(6, 2)
    before, after = (
        recorded(routing, embeddings, questions, torch.tensor(verdicts, dtype=torch.bool))
        for verdicts in ([1, 0, 0, 0, 1, 1], [0, 1, 1, 0, 1, 0])
    )
    x, y, average = task_rows(before, after)
    assert (x.n, x.before.value, x.after.value, x.won, x.lost) == (4, 0.25, 0.5, 2, 1)
    assert (y.n, y.before.value, y.after.value, y.won, y.lost) == (2, 1.0, 0.5, 0, 1)
    assert average.is_average
    assert (average.before.value, average.after.value) == (0.625, 0.5)  # each task counts the same
    assert average.difference.value == pytest.approx(-0.125)
    assert (average.won, average.lost, average.n) == (2, 2, 6)
    assert not any(row.difference.holds for row in (x, y, average))
    assert all(type(row.difference.p) is float for row in (x, y, average))


def test_a_recording_without_tasks_has_one_row() -> None:
    (row,) = task_rows(*pathways(20, ("",)))
    assert row.task == "all questions"


def test_the_gap_closed_by_hand() -> None:
    rows = method_rows(
        {
            "base": {"average": 0.5, "arc": {"value": 0.4, "low": 0.3, "high": 0.5}},
            "RoMA": {"average": 0.6, "arc": 0.3},
            "C3PO": {"arc": None},
            "oracle": {"average": 0.7, "arc": 0.4},
        }
    )
    assert [row.closed for row in rows] == [(None, 0.0), (None, pytest.approx(0.5)), (None, None), (None, 1.0)]
    assert rows[0].values[0] is not None
    assert (rows[0].values[0].low, rows[0].values[0].high) == (0.3, 0.5)
    assert all(row.closed == (None,) for row in method_rows({"RoMA": {"arc": 0.5}, "base": {"arc": 0.4}}))


def test_usage_by_hand() -> None:
    routing = torch.tensor([[[0.5, 0.3, 0.1, 0.1]], [[0.1, 0.7, 0.2, 0.0]]])
    questions = [Question(text, "a") for text in "ab"]
    found = usage(recorded(routing, torch.rand(2, 2), questions))
    assert found.chosen.tolist() == [[0.5, 1.0, 0.5, 0.0]]
    assert found.weight[0].tolist() == pytest.approx([0.3, 0.5, 0.15, 0.05])
    entropies = [-sum(p * log(p) for p in row if p) for row in ([0.5, 0.3, 0.1, 0.1], [0.1, 0.7, 0.2, 0.0])]
    assert float(found.entropy[0]) == pytest.approx(sum(entropies) / 2)
    assert float(found.spread[0]) == pytest.approx(-sum(p * log(p) for p in (0.3, 0.5, 0.15, 0.05)))
    (row,) = layer_rows(found, found, ["3"])
    assert row.experts[0] == pytest.approx(np.exp(sum(entropies) / 2))


def test_heatmaps_share_a_scale_and_show_the_difference() -> None:
    first, second = (usage(each) for each in pathways(40, layers=3, experts=6))
    chosen, weight = heatmaps(first, second, 2)
    assert [each.title for each in chosen.maps] == ["before", "after", "difference"]
    top = float(torch.maximum(first.weight, second.weight).max())
    before, after, difference = weight.maps
    assert before.scale == after.scale == f"{100 * top:.3g} %"
    for found, values in ((before, first.weight), (after, second.weight)):
        shades = {(cell.layer, cell.expert): cell.shade for cell in found.cells}
        for (layer, expert), value in np.ndenumerate(values.numpy()):
            assert shades.get((layer, expert), 0.0) == pytest.approx(value / top, abs=0.0051)
    change = second.weight - first.weight
    for cell in difference.cells:
        assert (cell.kind == "more") == (change[cell.layer, cell.expert] > 0)
    assert max(cell.shade for cell in difference.cells) == 1
    assert heatmaps(first, first, 2)[0].maps[2].cells == ()


def test_layers_have_the_model_s_numbers() -> None:
    before, _ = pathways(10)
    assert layer_names(before) == ["3", "4"]
    assert layer_names(replace(before, settings={"layers": ["gate a", "gate b"]})) == ["0", "1"]


@pytest.mark.parametrize(("experts", "last"), [(4, 3), (16, 14), (64, 56), (128, 112), (160, 128)])
def test_ticks_of_experts_never_crowd(experts: int, last: int) -> None:
    ticks = expert_ticks(experts)
    assert (ticks[0], ticks[-1]) == (0, last)
    assert len(ticks) <= 10


def test_pca_keeps_what_lies_in_a_plane() -> None:
    draw = torch.Generator().manual_seed(0)
    plane = torch.randn(40, 2, generator=draw, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(7, 7, generator=draw, dtype=torch.float64))[0][:2]
    found = project(plane @ turn + 3, PCA)
    assert torch.allclose(torch.cdist(found.points, found.points), torch.cdist(plane, plane), atol=1e-6)
    assert found.kept == pytest.approx(1)
    half = project(torch.randn(400, 10, generator=draw), PCA)
    assert half.kept is not None
    assert 0.2 < half.kept < 0.35


def test_projections_are_the_same_every_time() -> None:
    rows = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    for how in available(12):
        torch.manual_seed(1)
        first, state = project(rows, how).points, torch.get_rng_state()
        torch.manual_seed(2)
        assert torch.equal(first, project(rows, how).points)
        torch.manual_seed(1)
        assert torch.equal(state, torch.get_rng_state())  # and nobody else's draws are touched


def test_tsne_keeps_clusters_apart() -> None:
    pytest.importorskip("sklearn")
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 16, generator=draw).mul(8).repeat_interleave(15, 0) + torch.randn(45, 16, generator=draw)
    distances = torch.cdist(*[project(rows, TSNE).points] * 2).fill_diagonal_(torch.inf)
    own = torch.arange(45) // 15
    assert torch.equal(own[distances.argmin(1)], own)


def test_projections_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="no projection 'UMAP'; there are PCA and t-SNE"):
        project(torch.rand(20, 3), "UMAP")
    assert available(5) == [PCA]
    monkeypatch.setattr(routing_projection, "find_spec", lambda name: None)
    assert available(50) == [PCA]
    with pytest.raises(SettingsError, match=r"fusionroute\[moe\]"):
        project(torch.rand(20, 3), TSNE)


@pytest.mark.parametrize("shape", [(5, 1), (3, 8), (1, 4)])
def test_few_points_or_one_dimension_can_be_drawn(shape: tuple[int, int]) -> None:
    found = project(torch.rand(shape), PCA)
    assert found.points.shape == (shape[0], 2)
    assert found.points.isfinite().all()


def test_turning_undoes_a_turn_and_a_mirror() -> None:
    points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = torch.tensor([[0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)
    assert torch.allclose(turned_like(points @ turn, points), points, atol=1e-12)


def test_a_picture_places_every_question() -> None:
    before, after = pathways(50)
    (picture,) = pictures(before, after, range(50), [PCA])
    assert [panel.title for panel in picture.panels] == ["Embeddings", "Routing before", "Routing after"]
    names = [task.name for task in tasks_shown(before)]
    for panel, recording in zip(picture.panels, (before, before, after), strict=True):
        assert sorted(mark.question for mark in panel.marks) == list(range(50))
        for mark in panel.marks:
            assert mark.is_right == bool(recording.correct[mark.question])
            assert names[mark.task] == recording.tasks[mark.question]
        assert all(0 < x < SIDE and 0 < y < SIDE for x, y in map(_place, panel.marks))
        assert [mark.is_right for mark in panel.marks] == sorted((m.is_right for m in panel.marks), reverse=True)


def _place(mark: Mark) -> tuple[float, float]:
    """Where a mark's path begins, which is within a mark's size of its middle."""
    x, y = mark.outline[1:].split("a")[0].split("h")[0].split("L")[0].split("l")[0].split()
    return float(x), float(y)


def test_tasks_differ_in_colour_or_shape() -> None:
    tasks = tuple(f"task {at}" for at in range(24))
    before, _ = pathways(600, tasks)
    shown: list[Task] = tasks_shown(before)
    assert sorted(task.name for task in shown) == sorted(tasks)
    assert len({(task.colour, task.shape) for task in shown}) == 24
    assert sum(task.n for task in shown) == 600


def test_of_many_questions_some_are_drawn_from_every_task() -> None:
    before, _ = pathways(300, tuple("abcdef"))
    places = pictured(before, 60)
    assert len(set(places)) == 60
    for task in "abcdef":
        share = before.tasks.count(task) / 300
        assert [before.tasks[place] for place in places].count(task) == pytest.approx(60 * share, abs=1.01)
    assert pictured(before, 300) == list(range(300))
    assert routing_panels.SIZES[-1][0] >= routing_panels.PICTURED


@pytest.mark.parametrize(
    ("follow", "said"),
    [((0.3, 2.0), "more closely than before"), ((2.0, 0.3), "less closely than before"), ((1.0, 1.0), "as it did")],
)
def test_the_headline_says_what_the_interval_does(follow: tuple[float, float], said: str) -> None:
    before, after = pathways(80, follow=follow)
    reading = read_routing(measure_rows(alignment(before, after, k=5)), task_rows(before, after))
    assert said in reading.lead
    assert reading.headline.startswith("CKA with their embeddings 0.")
    assert reading.more[0].startswith("Neighbour overlap")
    assert f"{int((after.correct & ~before.correct).sum())} questions won" in reading.more[1]
