"""Where things stand in a chart: axes, stacked bars, names beside points, the frontier."""

import random
from typing import Any

import pytest

from fusionroute.evaluation.report import axis
from fusionroute.evaluation.report.colours import expert_colours, ink_on
from fusionroute.evaluation.report.cost import cost_table, scatters
from fusionroute.evaluation.report.ensembling import LEAST, ensemblings
from fusionroute.evaluation.report.labels import LETTER, LINE, Box, Label, place
from fusionroute.evaluation.report.results import Results
from fusionroute.evaluation.report.usage import usages, writers
from fusionroute.terminal.tokens import PALETTE


def record(**more: Any) -> Results:
    return Results({"format": "fusionroute.comparison", "methods": ["a", "b", "c"], "tasks": ["t"], **more})


def test_a_linear_axis_has_round_ends_around_all_values() -> None:
    found = axis.linear([0.13, 0.87], within=(0.0, 1.0))
    assert found.ticks == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert [found.at(v) for v in (0.0, 0.25, 1.0, 1.7, -1.0)] == [0, 25, 100, 100, 0]


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [], [1.0], [-0.03, 0.012], [0.871, 0.873]])
def test_an_axis_has_length_and_holds_every_value(values: list[float]) -> None:
    found = axis.linear(values)
    assert found.low < found.high
    assert len(found.ticks) >= 2
    assert all(found.low - 1e-9 <= value <= found.high + 1e-9 for value in values)


def test_a_logarithmic_axis_keeps_ratios() -> None:
    found = axis.logarithmic([0.001, 0.01, 0.1])
    assert found.at(0.01) == 50
    assert found.ticks[:4] == (0.001, 0.002, 0.005, 0.01)
    assert found.at(0.02) - found.at(0.01) == pytest.approx(found.at(0.002) - found.at(0.001), abs=0.02)
    assert found.at(0.0) == 0


def test_experts_have_the_terminal_s_colours_and_readable_ink() -> None:
    names = [f"expert {at}" for at in range(9)]
    found = expert_colours(names)
    assert list(found.values())[:7] == list(PALETTE)
    assert len(set(found.values())) == 9
    assert (ink_on("#ffffff"), ink_on("#000000"), ink_on("#f0e442")) == ("#111418", "#ffffff", "#111418")


def test_stacked_parts_fill_the_bar_in_the_team_s_order() -> None:
    usage = {
        "experts": ["math", "code", "chat"],
        "by_task": {"t": {"chat": 0.2, "math": 0.6, "code": 0.0}},
        "by_position": {"t": {"math": [0.5, 0.0], "code": [0.25, 0.0], "chat": [0.25, 0.0]}},
    }
    (method,) = usages(record(usage={"b": usage}), expert_colours(["math", "code", "chat"]))
    (task,) = method.tasks
    assert [(part.expert, part.start, part.length) for part in task.shares] == [("math", 0, 75), ("chat", 75, 25)]
    assert [(part.expert, part.start, part.length) for part in task.tenths[0]] == [
        ("math", 0, 50),
        ("code", 50, 25),
        ("chat", 75, 25),
    ]
    assert task.tenths[1] == ()


def test_whoever_wrote_has_a_colour_and_a_part_in_the_settings_order() -> None:
    usage = {"experts": ["code", "math"], "by_task": {"t": {"code": 0.5, "router": 0.25, "math": 0.25}}}
    found = record(usage={"b": usage}, settings={"experts": {"chat": "c", "math": "m", "code": "k"}})
    assert writers(found) == ["math", "code", "router"]
    (method,) = usages(found, expert_colours(writers(found)))
    shares = [(part.expert, part.colour, part.length) for part in method.tasks[0].shares]
    assert shares == [("math", PALETTE[0], 25), ("code", PALETTE[1], 50), ("router", PALETTE[2], 25)]
    assert method.tasks[0].tenths == ()


def checked(*by_tenth: float) -> dict[str, Any]:
    return {
        "tokens": 50,
        "ensembled": 0.02,
        "verdicts": {"replaced": 0.02, "consensus": 0.98},
        "ensembled_by_tenth": by_tenth,
    }


def test_pictures_of_one_method_share_their_scale() -> None:
    by_task = {"t": checked(0.0, 0.2), "u": checked(0.4, 0.0)}
    (found,) = ensemblings(record(tasks=["t", "u"], ensembling={"b": {"by_task": by_task}}))
    assert [task.tenths for task in found.tasks] == [(0.0, 0.2), (0.4, 0.0)]
    assert found.top == 0.4
    (low,) = ensemblings(record(ensembling={"b": {"by_task": {"t": checked(0.001)}}}))
    assert low.top == LEAST


def test_verdicts_stand_in_one_order_and_what_a_task_never_saw_is_empty() -> None:
    rare = checked(0.1) | {"verdicts": {"boundary": 1.0}}
    found = ensemblings(record(tasks=["t", "u"], ensembling={"b": {"by_task": {"u": rare, "t": checked(0.1)}}}))
    assert [verdict.name for verdict in found[0].verdicts] == ["consensus", "boundary", "replaced"]
    assert [(task.task, task.verdicts) for task in found[0].tasks] == [
        ("t", (0.98, None, 0.02)),
        ("u", (None, 1.0, None)),
    ]
    assert ensemblings(record()) == []


def extent(label: Label) -> Box:
    width = len(label.text) * LETTER
    left = label.x - {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
    return Box(left, label.y + 4 - LINE, left + width, label.y + 4)


def test_names_cover_neither_each_other_nor_points() -> None:
    draw = random.Random(3)
    names = [f"method number {at}" for at in range(12)]
    spots = [(draw.uniform(60, 800), draw.uniform(20, 400)) for _ in names]
    frame = Box(50, 10, 870, 410)
    found = place(names, spots, frame)
    boxes = [extent(label) for label in found]
    dots = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in spots]
    assert [label.text for label in found] == names
    for at, box in enumerate(boxes):
        assert box.outside(frame) == pytest.approx(0, abs=0.1 * LINE)
        assert not [other for other in boxes[at + 1 :] if box.overlap(other) > 1]
        assert not [dot for dot in dots if box.overlap(dot) > 1]


def test_points_in_one_place_still_have_names_apart() -> None:
    found = place(["one", "two", "three", "four"], [(400.0, 200.0)] * 4, Box(50, 10, 870, 410))
    boxes = [extent(label) for label in found]
    assert not [1 for at, box in enumerate(boxes) for other in boxes[at + 1 :] if box.overlap(other) > 1]


def results(costs: dict[str, float], accuracies: dict[str, float]) -> Results:
    return record(
        reference="b",
        cost={name: {"seconds_per_token": cost, "tokens_read_per_token": {"m": 1.0}} for name, cost in costs.items()},
        accuracy={name: {"average": {"value": value}} for name, value in accuracies.items()},
    )


def test_the_frontier_leaves_out_what_is_beaten_in_both() -> None:
    found = results({"a": 1.0, "b": 3.0, "c": 2.0}, {"a": 0.4, "b": 0.8, "c": 0.3})
    scatter, _ = scatters(cost_table(found))
    spots = {point.method: (point.x, point.y) for point in scatter.points}
    (ax, ay), (bx, by) = spots["a"], spots["b"]
    assert scatter.frontier == f"M{ax} {ay} H{bx} V{by}"
    assert ax < spots["c"][0] < bx
    assert by < ay < spots["c"][1]
    assert scatter.points[-1].method == "b"  # the reference lies on top


@pytest.mark.parametrize(("dearest", "logarithmic"), [(5.0, False), (50.0, True)])
def test_costs_far_apart_have_a_logarithmic_axis(dearest: float, logarithmic: bool) -> None:
    found = results({"a": 1.0, "b": dearest, "c": 2.0}, {"a": 0.4, "b": 0.8, "c": 0.3})
    scatter, _ = scatters(cost_table(found))
    assert ("logarithmic" in scatter.caption) == logarithmic


def test_memory_that_includes_the_rest_is_not_added_to_it() -> None:
    kept = {"weights": 1, "cache": 2}
    assert cost_table(record(cost={"a": {"peak_memory": kept}})).adds_up
    assert not cost_table(record(cost={"a": {"peak_memory": kept | {"allocated": 4}}})).adds_up


def test_one_point_is_no_plot() -> None:
    assert scatters(cost_table(results({"a": 1.0}, {"a": 0.4}))) == []
    assert scatters(cost_table(record())) == []
