"""``fusionroute roma evaluate`` and ``oracle``: how many questions are answered rightly, and could be."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fusionroute.cli import options
from fusionroute.cli.console import quiet, say, stdout
from fusionroute.cli.roma.options import BatchSize, Layers, Limit, Model, Prompt, Questions
from fusionroute.cli.roma.question_format import Chosen, choose_format
from fusionroute.cli.roma.questions import layers_of, load, say_format
from fusionroute.terminal.tables import percent

if TYPE_CHECKING:
    from rich.table import Table

    from fusionroute.evaluation.statistics import Estimate
    from fusionroute.moe.questions.questions import Question
    from fusionroute.progress import Progress


def evaluate(
    model: Model,
    questions: Questions,
    reference_base: Annotated[
        str | None,
        typer.Option(
            "--reference-base", metavar="MODEL", help="Also ask this model, and compare question by question."
        ),
    ] = None,
    prompt: Prompt = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
) -> None:
    """How many questions a model answers correctly, with 95 % intervals, over all and by task."""
    quiet()
    from fusionroute.terminal.progress import RichProgress

    console, chosen = stdout(), choose_format(model, prompt)
    correct: dict[str, list[bool]] = {}
    with RichProgress(Console(stderr=True, highlight=False)) as progress:
        for name in dict.fromkeys([model, *([reference_base] if reference_base else [])]):
            asked, correct[name] = _verdicts(name, questions, chosen, limit, batch_size, device, dtype, progress)
    found = _accuracies(asked, correct[model])
    result: dict[str, Any] = {
        "model": model,
        "questions": str(questions),
        "prompt": chosen.name,
        **_as_json(found),
    }
    if reference_base:
        theirs = _accuracies(asked, correct[reference_base])
        result["reference"] = {"model": reference_base, **_as_json(theirs)}
        result["difference"] = asdict(_difference(asked, correct[model], correct[reference_base]))
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    console.print(_table(found, theirs if reference_base else None))
    if reference_base:
        difference = result["difference"]
        say(
            console,
            f"{model} minus {reference_base}, mean of tasks: {100 * difference['value']:+.1f} points "
            f"({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}, p = {difference['p']:.2g})",
        )
    say_format(console, chosen)


def _verdicts(
    model: str,
    questions: Path,
    chosen: Chosen,
    limit: int | None,
    batch_size: int,
    device: str | None,
    dtype: str | None,
    progress: "Progress",
) -> "tuple[list[Question], list[bool]]":
    """What was asked, and whether it was answered correctly. The model is gone from memory when this returns."""
    from fusionroute.moe.asking import ask

    asked, _, encoded, gates = load(model, questions, chosen, limit, device, dtype, layers=1)
    said = ask(gates, encoded, batch_size=batch_size, progress=progress)
    return asked, [bool(each) for each in said.correct]


def oracle(
    model: Model,
    questions: Questions,
    layers: Layers = "5",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of descent on each question's routing.")] = 10,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", help="Of the first step; it falls as a cosine.")
    ] = 1e-2,
    core: Annotated[int, typer.Option("--core", min=1, help="Experts per layer that may move, the likeliest.")] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Of the wrong labels.")] = 0,
    prompt: Prompt = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
) -> None:
    """What descent on the last prompt token's routing finds with the label known, beside the same with wrong labels.

    No method, and no bound on gates that are trained, which route every token.
    """
    quiet()
    from fusionroute.evaluation.statistics import wilson
    from fusionroute.moe.optimise import Descent
    from fusionroute.moe.oracle import oracle as find
    from fusionroute.moe.oracle import shuffled_oracle
    from fusionroute.terminal.progress import RichProgress

    how = Descent(steps=steps, learning_rate=learning_rate, final=min(1e-5, learning_rate), core=core)
    chosen = choose_format(model, prompt)
    _, _, encoded, gates = load(model, questions, chosen, limit, device, dtype, layers=layers_of(layers))
    with RichProgress(Console(stderr=True, highlight=False)) as progress:
        found = find(gates, encoded, how, batch_size=batch_size, progress=progress)
        control = shuffled_oracle(gates, encoded, how, seed=seed, batch_size=batch_size, progress=progress)
    shares = {
        "own_routing": found.before.correct,
        "oracle": found.after.correct,
        "wrong_answers_under_own_routing": control.before,
        "told_wrong_answers_reaches_them": control.reached,
        "told_wrong_answers_still_right": control.right,
    }
    estimates = {name: wilson(int(each.sum()), len(each)) for name, each in shares.items()}
    if as_json:
        said = {
            "model": model,
            "questions": str(questions),
            "prompt": chosen.name,
            "steps": steps,
            "descent": asdict(found.descent),
            "seed": seed,
            "layers": [gate.name for gate in gates.gates],
        }
        print(json.dumps({**said, **{name: asdict(each) for name, each in estimates.items()}}, indent=2))
        return
    console = stdout()
    for name, estimate in estimates.items():
        say(console, f"{name.replace('_', ' '):32} {percent(estimate)}")
    say(
        console,
        f"n = {len(encoded)}; {steps} steps of descent, the first at rate {learning_rate:g}, on the routing of the "
        f"last prompt token in {gates.count} layers, with the label known. This is no method, and no bound on gates "
        "that are trained, which route every token. What it reaches with wrong labels, beyond those that were the "
        "model's own answers, says how much of it is fitting",
    )
    say_format(console, chosen)


def _by_task(asked: "Sequence[Question]", correct: Sequence[bool]) -> dict[str, list[bool]]:
    tasks: dict[str, list[bool]] = {}
    for question, is_right in zip(asked, correct, strict=True):
        tasks.setdefault(question.task, []).append(is_right)
    return tasks


def _accuracies(asked: "Sequence[Question]", correct: Sequence[bool]) -> "dict[str, Estimate]":
    """``overall`` and ``mean of tasks``, then each task's."""
    from fusionroute.evaluation.statistics import stratified_mean, wilson

    tasks = _by_task(asked, correct)
    found = {"overall": wilson(sum(correct), len(correct))}
    if len(tasks) > 1:
        found["mean of tasks"] = stratified_mean(list(tasks.values()))
        found |= {f"task {task}": wilson(sum(each), len(each)) for task, each in tasks.items()}
    return found


def _difference(asked: "Sequence[Question]", mine: Sequence[bool], theirs: Sequence[bool]) -> Any:
    from fusionroute.evaluation.statistics import paired_difference

    return paired_difference(list(_by_task(asked, mine).values()), list(_by_task(asked, theirs).values()))


def _as_json(found: "Mapping[str, Estimate]") -> dict[str, Any]:
    values = {name: asdict(each) for name, each in found.items()}
    tasks = {name.removeprefix("task "): value for name, value in values.items() if name.startswith("task ")}
    both = {name.replace(" ", "_"): value for name, value in values.items() if not name.startswith("task ")}
    return {**both, "tasks": tasks}


def _table(found: "Mapping[str, Estimate]", reference: "Mapping[str, Estimate] | None") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, caption="right answers in %, 95 % intervals", caption_justify="left", pad_edge=False
    )
    for column in ("", "n", "model", *(["reference"] if reference else [])):
        table.add_column(column, justify="right" if column else "left")
    for name, estimate in found.items():
        theirs = [percent(reference[name])] if reference else []
        table.add_row(name.removeprefix("task "), str(estimate.n), percent(estimate), *theirs)
    return table
