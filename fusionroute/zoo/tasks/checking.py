"""Whether answers meet their requirements; all the code among them is run together."""

import re
from collections.abc import Sequence

from fusionroute.evaluation.sandbox import run_programs
from fusionroute.zoo.tasks.functions import program
from fusionroute.zoo.tasks.task import Example

FINAL_NUMBER = re.compile(r"^#### (-?\d+)$", re.MULTILINE)
FUNCTION = re.compile(r"^def f\(x\):(?:\n {4}.*)+", re.MULTILINE)


def check(examples: Sequence[Example], answers: Sequence[str]) -> list[bool]:
    """For each answer, whether it meets every requirement of its example."""
    if len(examples) != len(answers):
        raise ValueError(f"got {len(examples)} examples and {len(answers)} answers; give one answer for each example")
    verdicts = [_says(example.requirement, answer) for example, answer in zip(examples, answers, strict=True)]
    runnable = [i for i, example in enumerate(examples) if verdicts[i] and "reference" in example.requirement]
    programs = [_program(examples[i].requirement, answers[i]) for i in runnable]
    for i, passed in zip(runnable, run_programs(programs), strict=True):
        verdicts[i] = passed
    return verdicts


def _says(requirement: dict, answer: str) -> bool:
    """Every requirement that can be read off the text; code has at least to be there."""
    found = True
    if "number" in requirement:
        found &= FINAL_NUMBER.findall(answer) == [str(requirement["number"])]
    if "reference" in requirement:
        found &= len(FUNCTION.findall(answer)) == 1
    if "text" in requirement:
        found &= answer.strip() == requirement["text"]
    if "items" in requirement:
        found &= _last_line(answer).split(requirement["items"]["separator"]) == requirement["items"]["list"]
    if "pick" in requirement:
        found &= _picks(_last_line(answer), **requirement["pick"])
    return found


def _picks(line: str, count: int, of: list[str], separator: str) -> bool:
    """Any distinct words of the list will do, in any order."""
    words = line.split(separator)
    return len(words) == len(set(words)) == count and set(words) <= set(of)


def _last_line(answer: str) -> str:
    return answer.strip().rpartition("\n")[2]


def _program(requirement: dict, answer: str) -> str:
    function = FUNCTION.search(answer)
    assert function is not None
    return program(function.group(), requirement["reference"], requirement["inputs"])
