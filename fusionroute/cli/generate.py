"""``fusionroute generate``: answers to prompts, coloured, plain or as JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fusionroute.cli import options
from fusionroute.cli.console import stdout
from fusionroute.cli.failing import FAILED, complain
from fusionroute.cli.loading import batching, generation_settings, load_writers, speculation_options
from fusionroute.cli.prompts import as_text, read_prompts
from fusionroute.config import GenerationSettings
from fusionroute.errors import SettingsError

if TYPE_CHECKING:
    from fusionroute.engine.engine import Engine
    from fusionroute.engine.sequence import Completion
    from fusionroute.ensemble import Ensemble
    from fusionroute.team import Team


def generate(
    team: options.TeamOrEnsemble,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Else --file, else piped lines.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="One prompt a line; *.jsonl: objects with `prompt` or `messages`.")
    ] = None,
    max_new_tokens: options.MaxNewTokens = 256,
    do_sample: options.DoSample = False,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs",
            help="With --json: log-probabilities, and those of the n likeliest.",
            rich_help_panel=options.GENERATION,
        ),
    ] = None,
    no_complement: options.NoComplement = False,
    speculation: options.Speculation = None,
    max_draft: options.MaxDraft = None,
    override: options.EnsembleOverrides = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    cache_limit: options.CacheLimit = None,
    max_batch: Annotated[
        int, typer.Option("--max-batch", help="Answers written at once.", rich_help_panel=options.MACHINE)
    ] = 64,
    as_json: options.AsJson = False,
) -> None:
    """Answer prompts: coloured by expert in a terminal, plain in a pipe, or as JSON lines."""
    if logprobs is not None and not as_json:
        raise SettingsError("--logprobs are only written with --json; add it or drop --logprobs")
    settings = generation_settings(
        max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p,
        min_p=min_p, seed=seed, stop=stop, logprobs=logprobs,
    )  # fmt: skip
    drafting = speculation_options(speculation, max_draft)
    asked = read_prompts(prompts, file)
    loaded = load_writers(
        team, device, dtype, override, complement=not no_complement, is_speculating=drafting is not None
    )
    batched = batching(complement=not no_complement, speculation=drafting, cache_limit=cache_limit, max_batch=max_batch)
    failures = _answer(loaded, asked, batched, settings, as_json=as_json)
    if failures:
        raise typer.Exit(complain(f"{len(failures)} of {len(asked)} answers failed; the first: {failures[0]}", FAILED))


def _answer(
    team: "Team | Ensemble", prompts: list[Any], batched: dict[str, Any], settings: GenerationSettings, *, as_json: bool
) -> list[str]:
    """Generate and print; returns the errors of answers that failed."""
    from fusionroute.answering import complete
    from fusionroute.cli.writing import Meter, print_legend, write_answer

    console, engine = stdout(), team.engine(**batched)
    meter = Meter(engine)
    if as_json or not console.is_terminal:
        completions = complete(lambda: engine, team.prompt_format, prompts, settings, None)
        spent = meter.cost()
        cost = {"cost": {"answers": len(prompts), **spent}} if spent else {}
        for prompt, completion in zip(prompts, completions, strict=True):
            print(json.dumps(_record(prompt, completion, cost), ensure_ascii=False) if as_json else completion.text)
    elif len(prompts) == 1:
        completions = [write_answer(console, team, engine, prompts[0], settings)]
        if completions[0].finish_reason == "cancelled":
            raise KeyboardInterrupt  # what was written is shown; the exit code says that it is not all
        console.print()
        print_legend(console, team, completions, meter)
    else:
        completions = _answer_many(console, team, engine, prompts, settings)
        print_legend(console, team, completions, meter)
    return [completion.error or "" for completion in completions if completion.finish_reason == "error"]


def _answer_many(
    console: Console,
    team: "Team | Ensemble",
    engine: "Engine",
    prompts: list[Any],
    settings: GenerationSettings,
) -> "list[Completion]":
    from fusionroute.answering import complete
    from fusionroute.terminal.progress import RichProgress
    from fusionroute.terminal.tokens import coloured_answer, expert_styles

    with RichProgress(console) as progress:
        progress.start("writing", len(prompts))
        completions = complete(
            lambda: engine, team.prompt_format, prompts, settings, lambda sequence: progress.advance(1)
        )
    for prompt, completion in zip(prompts, completions, strict=True):
        console.print(f"› {as_text(prompt)}", style="dim", markup=False, soft_wrap=True)
        console.print(coloured_answer(completion, team.tokenizer, expert_styles(team.expert_names)), soft_wrap=True)
        console.print()
    return completions


def _record(prompt: Any, completion: "Completion", cost: dict[str, Any]) -> dict[str, Any]:
    """Answers that are written together have one ``cost``, which says of how many it is."""
    key = "prompt" if isinstance(prompt, str) else "messages"
    error = {"error": completion.error} if completion.error else {}
    return {
        key: prompt,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "token_ids": completion.token_ids,
        "trace": [asdict(record) for record in completion.trace],
        **cost,
        **error,
    }
