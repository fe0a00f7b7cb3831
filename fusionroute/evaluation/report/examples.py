"""Answers of all methods to the same questions, as the page's script reads them; the most instructive come first."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from fusionroute.engine.sequence import VERDICTS
from fusionroute.evaluation.report.results import Results, number

BUDGET = 4_000_000  # bytes of examples in the page
LONGEST = 6000  # characters shown of one prompt, target or answer
RIGHT = 0.5
# Markup, line ends that scripts take for their own, and lone surrogates, which have no UTF-8.
UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
Cell = Mapping[str, Any]
# One question after another: what the reference could do, what it could not though another could, what nobody could.
ROUND = ("won", "lost", "won", "lost", "nobody")


@dataclass(frozen=True)
class Question:
    """One question of a task and what each method made of it."""

    task: str
    id: Any
    answers: Mapping[str, Mapping[str, Any]]  # method to example

    @property
    def verdicts(self) -> dict[str, bool]:
        return {method: is_right(example) for method, example in self.answers.items()}


def is_right(example: Mapping[str, Any]) -> bool:
    return (number(example.get("score")) or 0.0) >= RIGHT


def questions(results: Results, cells: Iterable[Cell]) -> dict[str, list[Question]]:
    """Task to its questions, matched between methods by id, each method by its lowest seed, the most telling first."""
    chosen = first_seeds(cells)
    return {task: _in_order(_matched(results, task, chosen), results.reference) for task in results.tasks}


def first_seeds(cells: Iterable[Cell]) -> dict[tuple[str, str], Cell]:
    """Method and task to the cell of the lowest seed."""
    chosen: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        key = (cell["method"], cell["task"])
        if key not in chosen or (cell["seed"] or 0) < (chosen[key]["seed"] or 0):
            chosen[key] = cell
    return chosen


def payload(results: Results, cells: Iterable[Cell], colours: Mapping[str, str], *, count: int) -> dict[str, Any]:
    """Everything the viewer needs: at most ``count`` questions a task, fewer where the page would grow too large.

    Tokens name their expert, decider and verdict by number; a token's expert has a colour if it is one of a team's.
    """
    found = questions(results, cells)
    methods = [method for method in results.methods if any(method in q.answers for qs in found.values() for q in qs)]
    names, deciders, verdicts = _Numbers(colours), _Numbers(), _Numbers()
    tasks: dict[str, list[dict[str, Any]]] = {task: [] for task in results.tasks}
    spent = 0
    for rank in zip_longest(*(asked[:count] for asked in found.values())):
        shown = [(question, _shown(question, methods, names, deciders, verdicts)) for question in rank if question]
        spent += sum(len(json_text(item)) for _, item in shown)
        if spent > BUDGET and any(tasks.values()):
            break
        for question, item in shown:
            tasks[question.task].append(item)
    return {
        "methods": methods,
        "reference": results.reference,
        "rival": results.single,
        "experts": [{"name": name, "colour": colours.get(name)} for name in names.known],
        "deciders": list(deciders.known),
        "verdicts": [{"name": name, "meaning": VERDICTS.get(name, name)} for name in verdicts.known],
        "tasks": [{"name": task, "asked": len(found[task]), "items": items} for task, items in tasks.items() if items],
    }


def json_text(value: Any) -> str:
    """JSON that may stand inside a script element: no markup, and no line ends that scripts take for their own."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


class _Numbers:
    """Names to small numbers, in order of appearance."""

    def __init__(self, known: Iterable[str] = ()):
        self.known: dict[str, int] = {name: at for at, name in enumerate(known)}

    def of(self, names: Iterable[str]) -> list[int] | int:
        """One number where all are the same, which is most of what single models write."""
        numbers = [self.known.setdefault(name, len(self.known)) for name in names]
        return numbers[0] if numbers and len(set(numbers)) == 1 else numbers


def _matched(results: Results, task: str, chosen: Mapping[tuple[str, str], Cell]) -> list[Question]:
    answers: dict[Any, dict[str, Mapping[str, Any]]] = {}
    for method in results.methods:
        for example in chosen.get((method, task), {}).get("examples") or ():
            answers.setdefault(example["id"], {})[method] = example
    return [Question(task, at, found) for at, found in answers.items()]


def _in_order(asked: Sequence[Question], reference: str | None) -> list[Question]:
    kinds: dict[str, list[Question]] = {"lost": [], "won": [], "nobody": [], "everybody": []}
    for question in sorted(asked, key=lambda question: (-_dispute(question), str(question.id).zfill(12))):
        kinds[_kind(question, reference)].append(question)
    ordered: list[Question] = []
    while any(kinds[kind] for kind in ROUND):
        ordered += [kinds[kind].pop(0) for kind in ROUND if kinds[kind]]
    return ordered + kinds["everybody"]


def _kind(question: Question, reference: str | None) -> str:
    verdicts = question.verdicts
    if len(set(verdicts.values())) == 1:
        return "everybody" if all(verdicts.values()) else "nobody"
    return "won" if verdicts.get(reference or "", False) else "lost"


def _dispute(question: Question) -> float:
    """Largest where half of the methods are right."""
    right = list(question.verdicts.values())
    share = sum(right) / len(right)
    return round(share * (1 - share), 6)


def _shown(
    question: Question, methods: Sequence[str], names: _Numbers, deciders: _Numbers, verdicts: _Numbers
) -> dict[str, Any]:
    first = next(iter(question.answers.values()))
    answers = [
        _answer(question.answers[method], names, deciders, verdicts) if method in question.answers else None
        for method in methods
    ]
    return {"id": question.id, "prompt": _cut(first["prompt"]), "target": _cut(first["target"]), "answers": answers}


def _answer(example: Mapping[str, Any], names: _Numbers, deciders: _Numbers, verdicts: _Numbers) -> dict[str, Any]:
    shown: dict[str, Any] = {"score": number(example.get("score")), "finish": example.get("finish_reason")}
    tokens = example.get("tokens")
    if not tokens or not tokens["text"]:
        return shown | {"text": _cut(example["answer"])}
    count, length = 0, 0
    for text in tokens["text"]:
        length += len(text)
        if length > LONGEST:
            break
        count += 1
    shown |= {"tokens": tokens["text"][:count], "written": len(tokens["text"])}
    shown |= {"by": names.of(tokens["expert"][:count]), "decided": deciders.of(tokens["decided_by"][:count])}
    if any(tokens.get("verdict") or ()):
        support = {name: shares[:count] for name, shares in (tokens.get("support") or {}).items()}
        shown |= {"verdict": verdicts.of(tokens["verdict"][:count]), "support": support}
    return shown


def _cut(text: Any) -> str:
    text = str(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … [{len(text) - LONGEST:,} more characters]"
