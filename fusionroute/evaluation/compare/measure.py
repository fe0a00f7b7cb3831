"""Measuring one cell: lm-eval asks, the method answers, and who wrote what is kept with every answer."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import lm_eval
from lm_eval.api.task import Task

from fusionroute.engine.sequence import Completion
from fusionroute.evaluation.compare.cells import Cell, Record
from fusionroute.evaluation.compare.cost import drafts, ensembles, peak_memory, reset_peak, tokens_read
from fusionroute.evaluation.compare.lineup import Contestant
from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.evaluation.harness.answer_log import AnswerLog
from fusionroute.evaluation.harness.method_lm import MethodLM
from fusionroute.evaluation.tasks import primary_metric, scores
from fusionroute.evaluation.tasks.code_metric import sandboxed_code_eval
from fusionroute.terminal.tokens import Piece, pieces

Samples = list[Mapping[str, Any]]


def measure(
    cell: Cell,
    contestant: Contestant,
    tasks: Sequence[Task],
    settings: CompareSettings,
    log: AnswerLog,
    on_finish: Callable[[int], None],
) -> Record:
    """One cell, measured: what it came to, what it cost, and every answer.

    Args:
        tasks: lm-eval's task, or all those of a group.
        log: has the answers of an interrupted measurement, and gets the new ones.
        on_finish: called with the number of requests answered, as they are.

    Raises:
        FusionRouteError: the method cannot do this task, or a model fails.
    """
    method = contestant.method
    before, drafted = tokens_read(method), drafts(method)
    reset_peak()
    lm = MethodLM(
        method,
        contestant.tokenizer,
        prompt=contestant.prompt if contestant.prompt.name else None,
        max_batch=settings.max_batch,
        cache_limit=settings.cache_limit,
        seed=cell.seed or 0,
        on_finish=on_finish,
        log=log,
    )
    known = len(log.known)
    samples = _ask(lm, tasks, cell, settings)
    metric = primary_metric(tasks[0], cell.task.metric)
    by_name = {task.task_name: task for task in tasks}
    examples = _examples(samples, by_name, metric, lm, contestant)
    read = {name: count - before[name] for name, count in tokens_read(method).items()}
    return {
        "method": cell.method,
        "task": cell.task.task,
        "seed": cell.seed,
        "metric": metric,
        "value": sum(each["score"] for each in examples) / len(examples),
        "n": len(examples),
        "cost": {
            "seconds": lm.seconds,
            "tokens_written": lm.tokens_written,
            "tokens_read": read,
            "peak_memory": peak_memory(method),
            "batch": settings.max_batch,
            "answers_kept": known,  # by an interrupted measurement, whose cost is not in these figures
            **{name: count - drafted[name] for name, count in drafts(method).items()},
            **ensembles(itertools.chain.from_iterable(lm.written.values())),
        },
        "examples": examples,
    }


def _ask(lm: MethodLM, tasks: Sequence[Task], cell: Cell, settings: CompareSettings) -> dict[str, Samples]:
    """Run lm-eval; every item of every task with its answer and its metrics, by task."""
    for task in tasks:
        if task.OUTPUT_TYPE == "generate_until" and (options := settings.generation.overrides):
            task.set_config(key="generation_kwargs", value=options, update=True)
    allowed = sandboxed_code_eval(allow_code=settings.allow_code, task=f"task {cell.task.task!r}")
    with allowed, redirect_stderr(StringIO()):  # lm-eval's bars, one after another; what it logs still comes through
        found = lm_eval.evaluate(
            lm,
            {"tasks": {task.task_name: task for task in tasks}, "groups": {}, "group_map": {}},
            limit=cell.task.limit,
            apply_chat_template=settings.prompt is not None,
            fewshot_as_multiturn=settings.prompt is not None,
            confirm_run_unsafe_code=settings.allow_code,
            bootstrap_iters=0,  # intervals are ours: over items and seeds, and paired
            log_samples=True,
        )
    assert found is not None, "one process, so one that has the results"
    return {str(name): list(samples) for name, samples in found["samples"].items()}


def _examples(
    samples: Mapping[str, Samples], tasks: Mapping[str, Task], metric: str, lm: MethodLM, contestant: Contestant
) -> list[Record]:
    """One record per item, in the tasks' order; ids count through the tasks of a group."""
    examples: list[Record] = []
    # equal contexts, repeats too, are answered in the order in which they were asked
    written = {context: iter(completions) for context, completions in lm.written.items()}
    for task, of_task in samples.items():
        _, _, filter_name = metric.partition(",")
        asked = [sample for sample in of_task if sample["filter"] == filter_name]
        asked.sort(key=lambda sample: sample["doc_id"])
        for sample, score in zip(asked, scores(of_task, metric), strict=True):
            context, answer, completion = _answer(sample, written)
            question = tasks[task].doc_to_text(sample["doc"])
            examples.append(
                {
                    "id": len(examples),
                    "task": task,
                    "prompt": question if isinstance(question, str) else context,
                    "context": context,  # the prompt as the models read it: with its examples, in their format
                    "target": str(sample["target"]),
                    "answer": answer,
                    "score": score,
                    "finish_reason": completion.finish_reason if completion else None,
                    "tokens": _tokens(completion, contestant) if completion else None,
                }
            )
    return examples


def _answer(
    sample: Mapping[str, Any], written: Mapping[str, Iterator[Completion]]
) -> tuple[str, str, Completion | None]:
    """What was asked, what was answered, and how it was written; of repeats the first, of choices the likeliest."""
    arguments = sample["arguments"]
    context = str(arguments[0][0])
    if context in written:
        completion, *_ = itertools.islice(written[context], len(sample["resps"][0]))
        return context, completion.text, completion
    likelihoods = [float(answers[0][0]) for answers in sample["resps"]]
    return context, str(arguments[likelihoods.index(max(likelihoods))][-1]), None


def _tokens(completion: Completion, contestant: Contestant) -> dict[str, Any]:
    """Columns of what is known of each token; where models check each other's tokens, of those without a text too."""
    is_checked = any(record.verdict for record in completion.trace)
    written = list(pieces(completion, contestant.tokenizer, include_empty=is_checked))
    columns = {
        "text": [piece.text for piece in written],
        "expert": [piece.expert for piece in written],
        "decided_by": [piece.decided_by for piece in written],
    }
    if not is_checked:
        return columns
    return columns | {"verdict": [piece.verdict for piece in written], "support": _support(written, contestant)}


def _support(written: Sequence[Piece], contestant: Contestant) -> dict[str, list[float | None]]:
    """Model to its probability of its own token at each place, None where it was not asked."""
    names = [runner.name for runner in contestant.method.runners]  # the drafter is the first, as in the trace
    return {
        name: [float(f"{piece.support[at]:.3g}") if at < len(piece.support) else None for piece in written]
        for at, name in enumerate(names)
    }
