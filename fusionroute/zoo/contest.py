"""Who answers the zoo's unseen questions best: each expert, the router, and both together in two ways."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.method import Method
from fusionroute.engine.sequence import Completion
from fusionroute.evaluation.comparison import Comparison
from fusionroute.evaluation.statistics import Estimate
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.single import Single
from fusionroute.models.team import TeamModels
from fusionroute.models.vocabulary import ROUTER
from fusionroute.progress import Progress
from fusionroute.zoo.tasks import TASKS, Example, check, examples

ROUTER_ALONE, ROUTING_ONLY, BEFORE_CDPO, FUSED = "router alone", "routing only", "fused, before CDPO", "fused"
DECODING = GenerationSettings(max_new_tokens=80)  # the longest reference answer has about 60


SEEN_IN_DEVELOPMENT = 200  # the first test examples of each task: recipes and rates were chosen by looking at them


def unseen(count: int) -> dict[str, list[Example]]:
    """``count`` test examples of every task, the same for every team, and none that a setting was chosen on."""
    return {task: examples(task, "test", SEEN_IN_DEVELOPMENT + count)[SEEN_IN_DEVELOPMENT:] for task in TASKS}


def methods(team: TeamModels, before: TeamModels | None = None) -> dict[str, Method]:
    """Who is compared: each expert alone, the router alone, routing without the router's say, and both together.

    ``before`` is the same team after stage 1.
    """
    alone: dict[str, Method] = {f"{name} alone": Single(model, name) for name, model in team.experts.items()}
    together: dict[str, Method] = {
        ROUTER_ALONE: Single(team.router, ROUTER),
        ROUTING_ONLY: FusionRoute(team, complement=False),
    }
    if before is not None:
        together[BEFORE_CDPO] = FusionRoute(before)
    return alone | together | {FUSED: FusionRoute(team)}


def compare(
    team: TeamModels,
    test: Mapping[str, Sequence[Example]],
    progress: Progress,
    *,
    before: TeamModels | None = None,
) -> tuple[Comparison, dict[str, list[Completion]]]:
    """Every method answers every example, greedily; verdicts by method and task, and the answers themselves."""
    items = [example for task in test.values() for example in task]
    prompts = [team.prompt_format.encode(example.prompt) for example in items]
    contestants, answers = methods(team, before), dict[str, list[Completion]]()
    progress.start("comparing", len(items) * len(contestants))
    for name, method in contestants.items():
        engine = Engine(method, team.tokenizer)
        answers[name] = engine.generate(prompts, DECODING, lambda _, name=name: progress.advance(1, name))  # type: ignore[misc]
    progress.finish(f"compared {len(contestants)} ways of answering {len(items)} unseen questions")
    return Comparison({name: _verdicts(test, items, done) for name, done in answers.items()}), answers


def _verdicts(
    test: Mapping[str, Sequence[Example]], items: list[Example], answers: list[Completion]
) -> dict[str, list[bool]]:
    correct = iter(check(items, [answer.text for answer in answers]))
    return {task: [next(correct) for _ in drawn] for task, drawn in test.items()}


def differences(comparison: Comparison, tasks: Sequence[str] | None = None) -> dict[str, Estimate]:
    """What fusing gains over the best expert (best on these very items), the router, routing only, and stage 1."""
    together = (ROUTER_ALONE, ROUTING_ONLY, BEFORE_CDPO, FUSED)
    best = comparison.best([method for method in comparison.correct if method not in together], tasks)
    others = {f"best expert ({best})": best}
    others |= {method: method for method in together[:-1] if method in comparison.correct}
    return {f"{FUSED} − {label}": comparison.difference(FUSED, other, tasks) for label, other in others.items()}


def task_kinds() -> dict[str, tuple[str, ...]]:
    """Tasks by how many experts' skill an answer needs; "all" are all of them."""
    count = {name: len(task.domains) for name, task in TASKS.items()}
    return {
        "all": tuple(count),
        "one_expert": tuple(name for name in count if count[name] == 1),
        "mixed": tuple(name for name in count if count[name] > 1),
        "unknown": tuple(name for name in count if count[name] == 0),
    }


def summary(comparison: Comparison) -> dict[str, Any]:
    """Everything measured, as JSON: accuracies by method and task, and what fusing gains on kinds of tasks."""
    return {
        "accuracy": {
            method: {task: asdict(estimate) for task, estimate in row.items()}
            for method, row in comparison.rows().items()
        },
        "groups": {kind: _group(comparison, tasks) for kind, tasks in task_kinds().items()},
    }


def _group(comparison: Comparison, tasks: Sequence[str]) -> dict[str, Any]:
    return {
        "tasks": list(tasks),
        "average": {method: asdict(comparison.average(method, tasks)) for method in comparison.correct},
        "differences": {label: asdict(estimate) for label, estimate in differences(comparison, tasks).items()},
    }
