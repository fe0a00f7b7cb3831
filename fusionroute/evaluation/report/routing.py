"""One HTML page about a router before and after training: alignment, pictures of routing, usage, right answers."""

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fusionroute.environment import machine, versions
from fusionroute.errors import OutputExistsError
from fusionroute.evaluation.report import axis, page, routing_measures
from fusionroute.evaluation.report.axis import Axis
from fusionroute.evaluation.report.examples import json_text
from fusionroute.evaluation.report.provenance import pairs
from fusionroute.evaluation.report.routing_measures import TaskRow, measure_rows, method_columns, method_rows, task_rows
from fusionroute.evaluation.report.routing_panels import pictured, pictures, questions_shown, tasks_shown
from fusionroute.evaluation.report.routing_projection import available
from fusionroute.evaluation.report.routing_reading import change, fraction, read_routing
from fusionroute.evaluation.report.routing_usage import (
    Usage,
    expert_ticks,
    heatmaps,
    layer_names,
    layer_rows,
    least_width,
    usage,
)
from fusionroute.moe.pathways.alignment import alignment
from fusionroute.moe.pathways.pathways import Pathways
from fusionroute.output import write_text

TOLD = ("model", "dtype", "experts", "top_k", "embedder", "prompt")  # of a recording, in this order
Results = Mapping[str, Mapping[str, Any]]


def write_routing_report(
    before: Pathways,
    after: Pathways,
    output: str | Path,
    *,
    title: str,
    results: Results | None = None,
    neighbours: int = 10,
    projections: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one self-contained HTML page about two recordings of the same questions.

    The page loads nothing and runs no script but its own, so that a question can neither load nor run anything.

    Args:
        before: recorded with the model before it was trained, on questions that no training has seen.
        after: the same questions, recorded with the trained one.
        output: the file to write.
        results: methods to columns (tasks, ``average``) to a share of right answers, or a mapping with ``value``,
            ``low`` and ``high``, as the ``accuracy`` of a comparison's record. With methods ``base`` and ``oracle``
            the page says how much of the gap between them each method closes.
        neighbours: k of neighbour overlap and task separation.
        projections: ``PCA``, ``t-SNE``; None takes those that can be had.

    Raises:
        DataError: the recordings do not belong together; see `alignment`.
        OutputExistsError: ``output`` exists, and ``overwrite`` is False.
        SettingsError: no such projection.
    """
    output = Path(output)
    if output.is_dir() or (output.exists() and not overwrite):
        way_out = "give a file" if output.is_dir() else "choose another name, or ask for it to be overwritten"
        raise OutputExistsError(f"{output} exists; {way_out}")
    text = render(before, after, title=title, results=results, neighbours=neighbours, projections=projections)
    # a lone surrogate, which a model's bytes can decode to, has no UTF-8
    write_text(output, text.encode("utf-8", "replace").decode())
    return output


def render(
    before: Pathways,
    after: Pathways,
    *,
    title: str,
    results: Results | None = None,
    neighbours: int = 10,
    projections: Sequence[str] | None = None,
) -> str:
    """The page as text."""
    found = alignment(before, after, k=neighbours)
    measures, tasks = measure_rows(found), task_rows(before, after)
    places = pictured(before)
    ours, theirs = usage(before), usage(after)
    layers = layer_names(before)
    script = page.asset("routing.js")
    environment = page.template_environment()
    environment.filters |= {"fraction": fraction, "change": change}
    return environment.get_template("routing.html").render(
        title=title,
        style=page.asset("style.css") + Markup("\n") + page.asset("routing.css"),
        script=script,
        script_hash=page.script_hash(script),
        n=len(before),
        reading=read_routing(measures, tasks),
        alignment=found,
        embedder=before.settings["embedder"],
        measures=measures,
        measure_axis=_measure_axis([row.difference for row in measures]),
        pictures=pictures(before, after, places, available(len(places)) if projections is None else projections),
        drawn=len(places),
        shown_tasks=tasks_shown(before),
        heatmaps=heatmaps(ours, theirs, before.settings["top_k"]),
        layers=layers,
        layer_rows=layer_rows(ours, theirs, layers),
        experts=before.routing.shape[2],
        expert_ticks=expert_ticks(before.routing.shape[2]),
        map_width=least_width(before.routing.shape[2]),
        even_entropy=log(before.routing.shape[2]),
        tasks=tasks,
        task_axis=_difference_axis(tasks),
        methods=method_rows(results) if results else [],
        method_columns=method_columns(results) if results else [],
        base_and_oracle=(routing_measures.BASE, routing_measures.ORACLE),
        recordings=[("Before", _told(before)), ("After", _told(after))],
        versions=pairs(versions()),
        machine=pairs(machine()),
        data=Markup(json_text(_data(before, after, places, ours, theirs, layers))),
    )


def _measure_axis(differences: Sequence[Any]) -> Axis:
    return axis.linear([0.0, *(end for each in differences for end in (each.low, each.high))], ticks=4)


def _difference_axis(rows: Sequence[TaskRow]) -> Axis:
    ends = [end for row in rows for end in (row.difference.low, row.difference.high) if end is not None]
    return axis.linear([0.0, *ends], ticks=4)


def _told(pathways: Pathways) -> list[tuple[str, str]]:
    settings = pathways.settings
    told: dict[str, Any] = {name.replace("_", " "): settings[name] for name in TOLD if name in settings}
    told["layers"] = layer_names(pathways)
    told |= {name: str(settings[name])[:12] for name in ("weights", "data") if name in settings}
    return pairs(told)


def _data(
    before: Pathways, after: Pathways, places: Sequence[int], ours: Usage, theirs: Usage, layers: Sequence[str]
) -> dict[str, Any]:
    """What the page's script shows where the mouse points."""
    return {
        "tasks": [task.name for task in tasks_shown(before)],
        "questions": questions_shown(before, after, places),
        "layers": list(layers),
        "usage": [
            [[[round(share, 4) for share in row] for row in each.tolist()] for each in pair]
            for pair in ((ours.chosen, theirs.chosen), (ours.weight, theirs.weight))
        ],
    }
