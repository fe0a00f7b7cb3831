"""Several methods on the same items of the same tasks: accuracies, averages and paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusionroute.evaluation.statistics import Estimate, paired_difference, stratified_mean, wilson

AVERAGE = "average"


@dataclass(frozen=True)
class Comparison:
    """Whether each answer was right.

    Attributes:
        correct: method to task to one verdict per item (a share where an item was answered several times); every
            method has the same tasks and items, in the same order.
    """

    correct: Mapping[str, Mapping[str, Sequence[float]]]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(next(iter(self.correct.values())))

    def accuracy(self, method: str, task: str) -> Estimate:
        """Share of right answers, with Wilson's interval; for verdicts, not for shares."""
        verdicts = self.correct[method][task]
        assert set(verdicts) <= {0, 1}, "Wilson's interval is one of counts; ask for the average of one task"
        return wilson(round(sum(verdicts)), len(verdicts))

    def average(self, method: str, tasks: Sequence[str] | None = None) -> Estimate:
        """Mean over tasks (all of them by default), each counting the same."""
        return stratified_mean(self._groups(method, tasks))

    def difference(self, first: str, second: str, tasks: Sequence[str] | None = None) -> Estimate:
        """How much better ``first`` is than ``second`` on average, on the same items."""
        return paired_difference(self._groups(first, tasks), self._groups(second, tasks))

    def best(self, methods: Sequence[str], tasks: Sequence[str] | None = None) -> str:
        """The method with the highest average; the first of equals."""
        return max(methods, key=lambda method: self.average(method, tasks).value)

    def rows(self) -> dict[str, dict[str, Estimate]]:
        """Every method's accuracy by task, and its average."""
        return {
            method: {task: self.accuracy(method, task) for task in self.tasks} | {AVERAGE: self.average(method)}
            for method in self.correct
        }

    def _groups(self, method: str, tasks: Sequence[str] | None) -> list[Sequence[float]]:
        return [self.correct[method][task] for task in tasks or self.tasks]
