"""How the parts of a task stand together: one after another, or one inside another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fusionroute.zoo.tasks import functions
from fusionroute.zoo.tasks.part import Part

Parts = Mapping[str, Part]


@dataclass(frozen=True)
class Layout:
    """The prompt, the lines of the answer, and what a checker needs, each made from the parts."""

    ask: Callable[[Parts], str]
    write: Callable[[Parts], tuple[str, ...]]
    require: Callable[[Parts], dict[str, object]]


def _requests(parts: Parts) -> str:
    return " ".join(part.request for part in parts.values())


def _lines(parts: Parts) -> tuple[str, ...]:
    return tuple(line for part in parts.values() for line in part.lines)


def _requirements(parts: Parts) -> dict[str, object]:
    return {name: value for part in parts.values() for name, value in part.requirement.items()}


def _requests_joined(parts: Parts) -> str:
    return f"{_requests(parts)} Return the number too."


def _sum_inside_code(parts: Parts) -> tuple[str, ...]:
    """The sum is worked in a comment, and its result is returned beside the function's own value."""
    *working, final = parts["math"].lines
    *opening, ending = parts["code"].lines
    comments = [f"{functions.INDENT}# {line}" for line in working]
    return (*opening, *comments, f"{ending}, {final.removeprefix('#### ')}")


def _tests_of_both(parts: Parts) -> dict[str, object]:
    inputs = parts["code"].requirement["inputs"]
    return {"reference": "\n".join(_sum_inside_code(parts)), "inputs": inputs}


ONE_AFTER_ANOTHER = Layout(_requests, _lines, _requirements)
SUM_INSIDE_CODE = Layout(_requests_joined, _sum_inside_code, _tests_of_both)
