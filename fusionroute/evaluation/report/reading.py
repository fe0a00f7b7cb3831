"""The result in a few sentences, made from the record alone."""

from dataclasses import dataclass

from fusionroute.evaluation.report.results import Results, Value
from fusionroute.evaluation.report.wording import NBSP, p_value, percent, percent_interval, several


@dataclass(frozen=True)
class Reading:
    """The best method's name, the sentence that goes on from it, and what else is worth saying."""

    lead: str
    headline: str
    more: tuple[str, ...] = ()


def read(results: Results) -> Reading:
    """What came out: who is best, by how much over the best expert alone, and how many differences hold."""
    best = _best(results)
    if best is None:
        return Reading("", "No method has finished all tasks, so there is no average to compare.")
    more = [_rank(results, best), *_reference(results, best), _tally(results)]
    return Reading(best, _headline(results, best), tuple(sentence for sentence in more if sentence))


def _best(results: Results) -> str | None:
    """Of equals the one that the comparison is about; the others are named in the next sentence."""
    averages = {method: value.value for method in results.methods if (value := results.average(method))}
    top = [method for method, value in averages.items() if value == max(averages.values())]
    return results.reference if results.reference in top else next(iter(top), None)


def _headline(results: Results, best: str) -> str:
    average = results.average(best)
    assert average is not None
    over = f"on average over {len(results.tasks)} tasks" if len(results.tasks) > 1 else f"on {results.tasks[0]}"
    interval = "" if average.low is None else f" (95{NBSP}% interval {percent_interval(average)})"
    gain = _against(results, results.single) if best == results.reference else ""
    return f"answers {percent(average.value)}{NBSP}% right {over}{interval}{gain and ', ' + gain}."


def _rank(results: Results, best: str) -> str:
    averages = {method: value.value for method in results.methods if (value := results.average(method))}
    level = [method for method, value in averages.items() if method != best and value == averages[best]]
    if level:
        return f"{', '.join(level)} {'has' if len(level) == 1 else 'have'} the same average."
    return f"That is the highest of {several(len(averages), 'method')}." if len(averages) > 1 else ""


def _reference(results: Results, best: str) -> list[str]:
    """Where the method that the comparison is about is not the best one: how it stands to that and to the experts."""
    if best == results.reference:
        return []
    others = dict.fromkeys([best, results.single])
    return [f"{results.reference} is {said}." for other in others if (said := _against(results, other))]


def _against(results: Results, other: str | None) -> str:
    """``3.1 points (1.0 to 5.2) above the best single expert, math expert (Holm-adjusted p = 0.012)``."""
    difference = results.difference(other) if other else None
    if difference is None or other is None or other == results.reference:
        return ""
    name = f"the best single expert, {other}" if other == results.single else other
    way = "above" if difference.value > 0 else "below" if difference.value < 0 else "away from"
    return f"{abs(100 * difference.value):.1f} points{_distance(difference)} {way} {name}{_verdict(difference)}"


def _distance(difference: Value) -> str:
    """The interval, counted in the direction of the difference."""
    if difference.low is None or difference.high is None:
        return ""
    low, high = (difference.low, difference.high) if difference.value >= 0 else (-difference.high, -difference.low)
    return f" ({percent(low)} to {percent(high)})"


def _verdict(difference: Value) -> str:
    if difference.p_adjusted is None:
        return ""
    found = p_value(difference.p_adjusted)
    relation = "" if found.startswith("<") else f"={NBSP}"
    p = f"Holm-adjusted p{NBSP}{relation}{found}"
    return f" ({p})" if difference.holds else f", which cannot be told from chance ({p})"


def _tally(results: Results) -> str:
    found = [value for method in results.methods if (value := results.difference(method))]
    if len(found) < 2:
        return ""
    better = sum(value.holds and value.value > 0 for value in found)
    worse = sum(value.holds and value.value < 0 for value in found)
    return (
        f"Of {len(found)} methods, {results.reference} is better than {better}, worse than {worse}, and "
        f"{len(found) - better - worse} cannot be told from it (5 % level, Holm)."
    )
