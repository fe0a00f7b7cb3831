"""What came of training a router, in a few sentences made from the figures alone."""

from collections.abc import Sequence

from fusionroute.evaluation.report.reading import Reading
from fusionroute.evaluation.report.results import LEVEL
from fusionroute.evaluation.report.routing_measures import MeasureRow, TaskRow
from fusionroute.evaluation.report.wording import MINUS, NBSP, percent, points, points_interval, several
from fusionroute.evaluation.statistics import Estimate

CLOSER = "Routing follows the questions more closely"
FURTHER = "Routing follows the questions less closely"
UNCLEAR = "Routing follows the questions as it did, as far as this can tell"


def fraction(value: float) -> str:
    """Three decimals, a true minus, no minus before zero."""
    return f"{value:z.3f}".replace("-", MINUS)


def change(value: float) -> str:
    """``fraction`` with its sign; a zero has none."""
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text.replace("-", MINUS)


def read_routing(measures: Sequence[MeasureRow], tasks: Sequence[TaskRow]) -> Reading:
    """Alignment first, judged by the debiased measure, then right answers."""
    found = {row.name: row for row in measures}
    judged = found["CKA, debiased"]
    more = [_others(found), _answers(tasks[-1], len(tasks)), _tally(tasks)]
    return Reading(_lead(judged.difference), _alignment(found["CKA"], judged), tuple(filter(None, more)))


def _lead(difference: Estimate) -> str:
    if difference.low > 0:
        return f"{CLOSER} than before:"
    return f"{FURTHER} than before:" if difference.high < 0 else f"{UNCLEAR}:"


def _alignment(cka: MeasureRow, debiased: MeasureRow) -> str:
    return (
        f"CKA with their embeddings {_step(cka)}; without its bias {_step(debiased)}, "
        f"a difference of {change(debiased.difference.value)} (95{NBSP}% interval {_interval(debiased.difference)})."
    )


def _others(found: dict[str, MeasureRow]) -> str:
    said = [
        f"{name} {_share(row.before.value)} → {_share(row.after.value)} (by chance {_share(row.chance[1])})"
        for name, row in found.items()
        if not name.startswith("CKA")
    ]
    return (", ".join(said) + ".").capitalize()


def _answers(row: TaskRow, rows: int) -> str:
    over = f"on average over {rows - 1} tasks" if row.is_average else f"on {row.task}"
    return (
        f"Right answers {over}: {percent(row.before.value)} → {percent(row.after.value)}{NBSP}%, "
        f"{points(row.difference.value)} points (95{NBSP}% interval {points_interval(row.difference)}); "
        f"{row.won:,} questions won, {row.lost:,} lost."
    )


def _tally(rows: Sequence[TaskRow]) -> str:
    single = [row for row in rows if not row.is_average]
    if len(single) < 2:
        return ""
    better, worse = (
        sum(row.difference.holds and sign * row.difference.value > 0 for row in single) for sign in (1, -1)
    )
    return (
        f"Of {several(len(single), 'task')} {better} got better and {worse} worse beyond chance "
        f"(p below {LEVEL} after Holm's correction)."
    )


def _step(row: MeasureRow) -> str:
    return f"{fraction(row.before.value)} → {fraction(row.after.value)}"


def _share(value: float) -> str:
    return f"{percent(value)}{NBSP}%"


def _interval(estimate: Estimate) -> str:
    return f"{change(estimate.low)} to {change(estimate.high)}"
