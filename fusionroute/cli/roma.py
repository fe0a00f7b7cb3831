"""``fusionroute roma``: tune the routers of a mixture-of-experts model, and see what that did."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fusionroute.cli import options
from fusionroute.cli.console import conclude, quiet, say, stdout
from fusionroute.cli.overrides import with_overrides
from fusionroute.cli.question_format import Chosen, choose_format
from fusionroute.config import read_yaml

if TYPE_CHECKING:
    from rich.table import Table

    from fusionroute.evaluation.statistics import Estimate
    from fusionroute.models.gates import Gates
    from fusionroute.models.prompt import PromptFormat
    from fusionroute.moe.questions.questions import Encoded, Question
    from fusionroute.moe.roma.settings import RoMASettings
    from fusionroute.moe.roma.sweep import Sweep
    from fusionroute.progress import Progress

SettingsYaml = Annotated[
    Path, typer.Argument(metavar="SETTINGS.yaml", help="Model, questions and options.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set an option of SETTINGS.yaml, such as optimiser.learning_rate=1e-4; repeatable.",
    ),
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder or hub id of a mixture-of-experts model.", show_default=False)
]
Questions = Annotated[
    Path,
    typer.Argument(
        metavar="QUESTIONS.jsonl",
        help="Objects with `prompt` or `messages`, `answer`, and `options` and `task` if there are any.",
        show_default=False,
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="Prompt format: chat_template, alpaca, or text (as it is). Left out: that of the run of `roma train` or "
        "`roma sweep` in which MODEL lies; for other models text.",
    ),
]
Layers = Annotated[
    str, typer.Option("--layers", help="How many of the last MoE layers, a list of places such as 0,3,5, or all.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first questions.")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Questions in a pass.", rich_help_panel=options.MACHINE)
]


def train(
    settings: SettingsYaml,
    output: options.OutputFolder,
    delta: Annotated[
        bool, typer.Option("--delta", help="Save the routers alone, for `roma apply`; else a whole checkpoint.")
    ] = False,
    overwrite: options.Overwrite = False,
    override: Overrides = None,
) -> None:
    """Record pathways and tune the routers on them; run again, it continues where it stopped."""
    parsed = _settings(settings, override, delta)
    from fusionroute.moe.roma.roma import train_roma
    from fusionroute.terminal.progress import RichProgress

    console = stdout()
    with RichProgress(console) as progress:
        written = train_roma(parsed, output, overwrite=overwrite, progress=progress)
    conclude(console, written, _after(parsed, written))


def apply(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Folder or hub id of what was tuned.", show_default=False)
    ],
    delta: Annotated[
        Path, typer.Argument(metavar="DELTA", help="File that `roma train` wrote, or its folder.", show_default=False)
    ],
    output: options.OutputFolder,
    overwrite: options.Overwrite = False,
) -> None:
    """Put tuned routers into their base: the whole checkpoint, as `roma train` writes it without --delta."""
    quiet()
    from fusionroute.moe.roma.router_delta import apply_delta

    written = apply_delta(base, delta, output, overwrite=overwrite)
    conclude(stdout(), written, _asking(str(written), base))


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
        say(console, f"{name.replace('_', ' '):32} {_percent(estimate)}")
    say(
        console,
        f"n = {len(encoded)}; {steps} steps of descent, the first at rate {learning_rate:g}, on the routing of the "
        f"last prompt token in {gates.count} layers, with the label known. This is no method, and no bound on gates "
        "that are trained, which route every token. What it reaches with wrong labels, beyond those that were the "
        "model's own answers, says how much of it is fitting",
    )
    say_format(console, chosen)


def sweep(
    settings: SettingsYaml,
    output: options.OutputFolder,
    delta: Annotated[bool, typer.Option("--delta", help="Save the chosen routers alone.")] = False,
    overwrite: options.Overwrite = False,
    override: Overrides = None,
    as_json: options.AsJson = False,
) -> None:
    """Tune with several λ, 0 always among them; choose on data.dev and report every one."""
    parsed = _settings(settings, override, delta)
    from fusionroute.moe.roma.folder import SWEEP_FILE
    from fusionroute.moe.roma.roma import result_of
    from fusionroute.moe.roma.sweep import sweep as run
    from fusionroute.terminal.progress import RichProgress

    console = stdout()
    with RichProgress(Console(stderr=True, highlight=False) if as_json else console) as progress:
        found = run(parsed, output, overwrite=overwrite, progress=progress)
    if as_json:
        print(json.dumps({"prompt": parsed.prompt, **found.as_json()}, indent=2, ensure_ascii=False))
        return
    console.print(_sweep_table(found))
    say(console, f"λ = {found.chosen:g} was chosen; {output / SWEEP_FILE} has every point")
    written = result_of(output, parsed)
    conclude(console, written, _after(parsed, written))


def _after(settings: "RoMASettings", written: Path) -> str:
    base = settings.model.model
    if settings.save == "delta":
        return f"fusionroute roma apply {base} {written} --output …"
    return _asking(str(written), base)


def _asking(model: str, base: str) -> str:
    return f"fusionroute roma evaluate {model} QUESTIONS.jsonl --reference-base {base}"


def _settings(path: Path, override: list[str] | None, delta: bool) -> "RoMASettings":
    values = with_overrides(read_yaml(path), override or [])
    quiet()
    from fusionroute.moe.roma.settings import RoMASettings

    return RoMASettings.parse({**values, **({"save": "delta"} if delta else {})}, source=str(path))


def layers_of(text: str) -> int | str | tuple[int, ...]:
    """A number, a list of them if there is a comma, or a word, which `choose_gates` judges."""
    places = [place.strip() for place in text.split(",") if place.strip()]
    if not places or not all(place.removeprefix("-").isdecimal() for place in places):
        return text
    return tuple(map(int, places)) if "," in text else int(text)


def load(
    model: str,
    questions: Path,
    prompt: Chosen,
    limit: int | None,
    device: str | None,
    dtype: str | None,
    *,
    layers: int | str | tuple[int, ...],
) -> "tuple[list[Question], PromptFormat, list[Encoded], Gates]":
    """Questions as text, how they are put, as token ids; and the gates of the model."""
    from fusionroute.models.gates import Gates
    from fusionroute.models.loading import load_model, load_tokenizer
    from fusionroute.models.prompt import PromptFormat
    from fusionroute.models.team import context_length
    from fusionroute.moe.questions.questions import encode_questions, read_questions

    asked = read_questions(questions, limit)
    prompt_format = PromptFormat(load_tokenizer(model), prompt.name)
    live = load_model(model, device=device, dtype=dtype)
    return asked, prompt_format, encode_questions(asked, prompt_format, context_length(live)), Gates(live, layers)


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
        theirs = [_percent(reference[name])] if reference else []
        table.add_row(name.removeprefix("task "), str(estimate.n), _percent(estimate), *theirs)
    return table


def _sweep_table(found: "Sweep") -> "Table":
    from rich import box
    from rich.table import Table

    from fusionroute.evaluation.statistics import wilson

    caption = f"n = {found.base.n} development questions, 95 % intervals; λ = 0 is plain router tuning"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    for column in ("λ", "right answers in %", "mean of tasks", "loss"):
        table.add_column(column, justify="left" if column == "λ" else "right")
    for point in (found.base, *found.points):
        name = "untouched" if point.weight is None else f"{point.weight:g}"
        style = "bold" if point.weight == found.chosen else None
        right = _percent(wilson(point.correct, point.n))
        table.add_row(name, right, f"{100 * float(point.mean):.1f}", f"{point.loss:.4f}", style=style)
    return table


def _percent(estimate: "Estimate") -> str:
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def say_format(console: Console, chosen: Chosen) -> None:
    if chosen.remark:
        say(console, chosen.remark)
