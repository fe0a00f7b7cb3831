"""The page put together: one file, nothing loaded from anywhere, and whatever a model wrote is text and stays text."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fusionroute.evaluation.report import wording
from fusionroute.evaluation.report.colours import expert_colours
from fusionroute.evaluation.report.cost import cost_table, scatters
from fusionroute.evaluation.report.ensembling import ensemblings
from fusionroute.evaluation.report.examples import json_text, payload
from fusionroute.evaluation.report.provenance import facts, gaps, pairs, settings_text
from fusionroute.evaluation.report.reading import read
from fusionroute.evaluation.report.results import Results
from fusionroute.evaluation.report.tables import (
    accuracy_table,
    average_plot,
    difference_table,
    task_plots,
    verdict,
)
from fusionroute.evaluation.report.usage import usages, writers
from fusionroute.output import write_text

TEMPLATES = Path(__file__).with_name("templates")
FILTERS = (
    wording.percent,
    wording.points,
    wording.percent_interval,
    wording.points_interval,
    wording.p_value,
    wording.seconds,
    wording.size,
    wording.ratio,
    wording.several,
    verdict,
)


def write_report(
    record: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], path: str | Path, *, examples: int = 20
) -> None:
    """Write one self-contained HTML page about a comparison.

    The same record and cells give the same bytes. A content security policy in the page forbids every request and
    every script but the page's own, so that what a model wrote can neither load nor run anything.

    Args:
        record: what ``results.json`` holds.
        cells: one result per method, task and seed, with its examples; those that failed are simply not there.
        path: the file to write; an existing one is replaced.
        examples: questions shown per task, at most.

    Raises:
        DataError: ``record`` is no record of a comparison.
    """
    page = render(record, cells, examples=examples)
    # a lone surrogate, which a model's bytes can decode to, has no UTF-8
    write_text(path, page.encode("utf-8", "replace").decode())


def render(record: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], *, examples: int = 20) -> str:
    """The page as text."""
    results = Results(record)
    colours = expert_colours(writers(results))
    script = asset("script.js")
    costs = cost_table(results)
    return (
        template_environment()
        .get_template("page.html")
        .render(
            results=results,
            title=record.get("title") or "Comparison",
            style=asset("style.css"),
            script=script,
            script_hash=script_hash(script),
            reading=read(results),
            accuracy=accuracy_table(results),
            average=average_plot(results),
            by_task=task_plots(results),
            differences=difference_table(results),
            costs=costs,
            scatters=scatters(costs),
            usages=usages(results, colours),
            ensemblings=ensemblings(results),
            colours=colours,
            examples=Markup(json_text(payload(results, cells, colours, count=examples))),
            gaps=gaps(results, cells),
            facts=facts(results),
            machine=pairs(record.get("machine")),
            versions=pairs(record.get("versions")),
            settings=settings_text(results),
        )
    )


def template_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in FILTERS}
    return environment


def asset(name: str) -> Markup:
    """Our own style or script; not a template, so braces mean nothing in it."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8").strip())


def script_hash(script: str) -> str:
    """How a content security policy names a script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
