"""``fusionroute train --dry-run``: the plan of a run, as a table or as JSON."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fusionroute.training.planning.plan import ModelPlan, Plan, StagePlan


def print_plan(console: Console, plan: "Plan") -> None:
    """Models, data, one row per stage, and what there is to say of them."""
    for model in plan.models:
        console.print(_model(model), soft_wrap=True, markup=False)
    for line in plan.data:
        console.print(line, soft_wrap=True, markup=False)
    console.print(_table(plan))
    console.print(
        f"each: items of a step, of all processes. On {plan.device} with {plan.free_bytes / 2**30:.1f} GiB free for "
        f"each of {plan.processes} process{'es' if plan.processes > 1 else ''}. Weights, gradients and moments are "
        "counted, the rest of the memory is a rough formula; times are extrapolated from two layers.",
        style="dim",
        soft_wrap=True,
    )
    if plan.skipped_probe:
        console.print(f"some times are unknown: {plan.skipped_probe}", soft_wrap=True, markup=False)
    for warning in plan.warnings:
        console.print(f"warning: {warning}", style="bold yellow", soft_wrap=True, markup=False)


def plan_as_json(plan: "Plan") -> str:
    """Everything, with the sum of each stage's memory beside its parts."""
    values: dict[str, Any] = asdict(plan)
    for stage, planned in zip(values["stages"], plan.stages, strict=True):
        stage["memory"]["total"] = planned.memory.total
    return json.dumps(values, indent=2, ensure_ascii=False)


def _model(model: "ModelPlan") -> str:
    trained = f", {model.trainable:,} of them trained" if model.trainable else ""
    return (
        f"{model.name:10} {model.location}: {model.parameters:,} parameters{trained}, {model.dtype}, "
        f"{model.vocabulary:,} token ids"
    )


def _table(plan: "Plan") -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("what")  # gives way where a terminal is narrow
    for column in ("items", "tokens", "steps", "each", "memory", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in plan.stages:
        table.add_row(*_row(stage))
    return table


def _row(stage: "StagePlan") -> list[str]:
    from fusionroute.terminal.progress import duration

    def number(value: int | None) -> str:
        return "–" if value is None else f"{value:,}"

    def time(seconds: float | None) -> str:
        if seconds is None:
            return "–"
        return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else duration(seconds)

    return [
        *(stage.name, stage.what, number(stage.items), number(stage.tokens), number(stage.steps)),
        *(number(stage.items_per_step), _bytes(stage.memory.total), time(stage.seconds)),
    ]


def _bytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
