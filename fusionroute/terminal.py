"""How answers, comparisons and progress look in a terminal; plain text, free of control codes, where there is none."""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from fusionroute.engine.sequence import ENSEMBLED, VERDICTS, Completion, TraceRecord
from fusionroute.engine.text import GrowingText

# Okabe and Ito's colours, which stay apart for colour-blind readers, those readable on black and on white first.
PALETTE = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#f0e442")
AGAINST_EXPERT = ("router", "neither")  # deciders of a token that the expert alone would not have written
MARK = Style(underline=True)
BOLD = Style(bold=True)  # the ensemble was asked
REPLACED, CONTINUED = "replaced", "continued"  # of the verdicts, those that are marked in their own way
MARK_EXPLAINED = Text.assemble(("underlined", MARK), ": the expert alone would have written something else")
ASKED_EXPLAINED = Text.assemble(
    ("bold", BOLD), ": the models were asked   ", ("bold and underlined", BOLD + MARK), ": they wrote something else"
)
BEST = Style(bold=True, color="#009e73")
# What a model writes must not steer the terminal: control characters are shown as their pictures (␛ for escape).
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
PLAIN_SHARE = 10  # where there is no bar, a line for every tenth


@dataclass(frozen=True)
class Piece:
    """Text that can be shown once a token is written, and who wrote that token; see `TraceRecord`."""

    text: str
    expert: str
    decided_by: str
    verdict: str = ""
    support: tuple[float, ...] = ()


class Estimated(Protocol):
    """A value with its interval; read-only, so that frozen dataclasses fit."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def expert_styles(names: Sequence[str]) -> dict[str, Style]:
    """A colour per expert by its place in the team; beyond the palette the colours come again in italics."""
    laps = [divmod(at, len(PALETTE)) for at in range(len(names))]
    return {
        name: Style(color=PALETTE[colour], italic=True if lap % 2 else None)
        for name, (lap, colour) in zip(names, laps, strict=True)
    }


def pieces(
    completion: Completion, tokenizer: PreTrainedTokenizerBase, *, include_empty: bool = False
) -> Iterator[Piece]:
    """``completion.text`` cut by token; a character of several tokens belongs to the token that completes it.

    Args:
        include_empty: also tokens that show nothing, such as the end of the answer, so that every token is there.
    """
    growing, shown, end = GrowingText(tokenizer), 0, len(completion.text)
    for record in completion.trace:
        growing.push(record.token_id)
        if record is completion.trace[-1]:
            growing.finish()
        text = growing.text[shown:end]
        shown = len(growing.text)
        if text or include_empty:
            yield Piece(text, record.expert, record.decided_by, record.verdict, record.support)


def token_text(text: str, expert: str, decided_by: str, styles: Mapping[str, Style], verdict: str = "") -> Text:
    """One token's text in its expert's style, marked if the expert alone would have written another.

    A token with a verdict is bold where the ensemble was asked and marked where it wrote something else.
    """
    return Text(text.translate(VISIBLE), styles.get(expert, Style()) + _mark(decided_by, verdict))


def _mark(decided_by: str, verdict: str) -> Style:
    if verdict:
        is_bold = verdict in ENSEMBLED or verdict == CONTINUED
        return (BOLD if is_bold else Style()) + (MARK if verdict == REPLACED else Style())
    return MARK if decided_by in AGAINST_EXPERT else Style()


def coloured_answer(completion: Completion, tokenizer: PreTrainedTokenizerBase, styles: Mapping[str, Style]) -> Text:
    """The answer, each token in the style of the expert that wrote it; special tokens are not shown."""
    written = pieces(completion, tokenizer)
    return Text().join(
        token_text(piece.text, piece.expert, piece.decided_by, styles, piece.verdict) for piece in written
    )


def legend(
    styles: Mapping[str, Style],
    trace: Iterable[TraceRecord],
    *,
    explain: bool = True,
    cost: Mapping[str, Any] | None = None,
) -> Text:
    """Which colour is whose and how many of the tokens each wrote; the mark is explained if it occurs.

    Where models check each other's tokens, a second line says how many were ensembled and why the others were not.

    Args:
        cost: of writing this trace, where models draft: ``drafted`` and ``kept`` tokens, and ``tokens_read`` by model,
            which make a line of their own.
    """
    records = list(trace)
    counts = Counter(record.expert for record in records)
    parts = [
        Text.assemble((name, style), f" {counts[name] / max(len(records), 1):.0%}") for name, style in styles.items()
    ]
    if explain and any(record.decided_by in AGAINST_EXPERT and not record.verdict for record in records):
        parts.append(MARK_EXPLAINED)
    verdicts = Counter(record.verdict for record in records if record.verdict)
    lines = [Text("   ").join(parts), *([_verdict_line(verdicts)] if verdicts else [])]
    return Text("\n").join([*lines, *([_cost_line(cost, len(records))] if cost and records else [])])


def _cost_line(cost: Mapping[str, Any], written: int) -> Text:
    """``kept 48 of 50 drafted tokens (acceptance 96.0 %) · tokens read per written token: one 1.04, other 1.31``."""
    drafted, kept = cost["drafted"], cost["kept"]
    acceptance = f" (acceptance {100 * kept / drafted:.1f} %)" if drafted else ""
    reads = ", ".join(f"{model} {count / written:.2f}" for model, count in cost["tokens_read"].items())
    return Text(f"kept {kept} of {drafted} drafted tokens{acceptance} · tokens read per written token: {reads}")


def _verdict_line(counts: Mapping[str, int]) -> Text:
    """``ensembled 4 of 112 tokens (E/T 3.6 %), 2 of them replaced · kept: consensus 71 %, …``; it shows the marks."""
    total, ensembled = sum(counts.values()), sum(counts.get(verdict, 0) for verdict in ENSEMBLED)
    line = Text.assemble(("ensembled", BOLD), f" {ensembled} of {total} tokens (E/T {100 * ensembled / total:.1f} %)")
    if counts.get(REPLACED):
        line.append_text(Text.assemble(f", {counts[REPLACED]} of them ", (REPLACED, BOLD + MARK)))
    kept = [verdict for verdict in VERDICTS if verdict not in (*ENSEMBLED, CONTINUED) and counts.get(verdict)]
    if kept:
        line.append(" · kept: " + ", ".join(f"{verdict} {_whole_percent(counts[verdict] / total)}" for verdict in kept))
    return line


def _whole_percent(share: float) -> str:
    """Nothing that occurs is 0 %."""
    return "< 1 %" if share < 0.005 else f"{100 * share:.0f} %"


def comparison_table(
    rows: Mapping[str, Mapping[str, Estimated | None]],
    *,
    title: str = "",
    caption: str = "",
    bounds: Collection[str] = (),
) -> Table:
    """Methods down, tasks across: percent, below it the interval, the best of each column highlighted.

    Args:
        rows: None where there is no result.
        bounds: rows that are no method, such as an oracle, and stand out of the contest.
    """
    columns = list(next(iter(rows.values())))
    contest = [row for name, row in rows.items() if name not in bounds]
    best = {column: _best([each.value for row in contest if (each := row[column]) is not None]) for column in columns}
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.padding, table.pad_edge = (0, 1, 0, 0), False  # 80 columns are to hold eight tasks and their intervals
    table.add_column("", no_wrap=True)
    for column in columns:
        # a long name on two lines leaves room for all tasks side by side
        table.add_column(column.replace("_", "\n", 1).replace("_", " "), justify="right")
    for method, row in rows.items():
        is_bound = method in bounds
        cells = [_cell(row[column], None if is_bound else best[column]) for column in columns]
        table.add_row(method.replace(", ", ",\n", 1), *cells, style="italic" if is_bound else None)
    return table


def ensembling_table(costs: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """How often methods that draft and check ensembled, and what they read; None where there is no such method.

    Args:
        costs: by method, as in ``results.json``.
    """
    shown = {method: cost for method, cost in costs.items() if "ensembled_per_token" in cost}
    if not shown:
        return None
    caption = "E/T: tokens that were ensembled; acceptance: drafted tokens that stand"
    table = Table(caption=caption, box=box.SIMPLE_HEAD, caption_justify="left")
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    table.add_column("", no_wrap=True)
    for heading in ("E/T %", "acceptance %"):
        table.add_column(heading, justify="right")
    table.add_column("tokens read per written token")
    for method, cost in shown.items():
        reads = ", ".join(f"{model} {count:.2f}" for model, count in cost["tokens_read_per_token"].items())
        acceptance = cost.get("acceptance")
        table.add_row(
            method.replace(", ", ",\n", 1),
            f"{100 * cost['ensembled_per_token']:.1f}",
            "–" if acceptance is None else f"{100 * acceptance:.1f}",
            reads,
        )
    return table


def _best(values: Sequence[float]) -> float | None:
    """None where all are equal: then nothing stands out."""
    return max(values) if values and max(values) > min(values) else None


def _cell(estimate: Estimated | None, best: float | None) -> Text:
    if estimate is None:
        return Text("–", "dim")
    value = Text(f"{100 * estimate.value:.0f}", BEST if estimate.value == best else "")
    return Text.assemble(value, "\n", (f"{100 * estimate.low:.0f}–{100 * estimate.high:.0f}", "dim"))


class RichProgress:
    """One bar at a time: how far, how fast, how long still.

    Use it in a ``with`` block, so that an error or Ctrl-C gives the terminal back in order.
    """

    def __init__(self, console: Console):
        self.console = console
        self._bar: Progress | None = None
        self._note, self._total, self._done = "", 0, 0
        self._began: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def start(self, label: str, total: int) -> None:
        """A new bar of ``total`` steps; one that still runs is taken away."""
        self._stop()
        self._note, self._total, self._done, self._began = "", total, 0, time.monotonic()
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._bar = _bar(self.console)
            self._bar.start()
            self._bar.add_task(label, total=total, note="")
        else:
            self.console.print(f"{label} ({total})", markup=False)

    def advance(self, n: int = 1, note: str = "") -> None:
        """``n`` more steps are done; an empty ``note`` keeps the last one."""
        before, self._done = self._done, self._done + n
        if self._bar is not None:
            self._note = note or self._note
            self._bar.update(self._bar.task_ids[0], advance=n, note=self._note)
        elif self._tenths(self._done) > self._tenths(before):
            self.console.print(f"  {self._tenths(self._done) * PLAIN_SHARE} %  {note}".rstrip(), markup=False)

    def finish(self, message: str) -> None:
        """Replace the bar by one line and the time it took; without a bar, just say so."""
        self._stop()
        took = "" if self._began is None else f" ({duration(time.monotonic() - self._began)})"
        self.console.print(Text.assemble(("✓ ", BEST), message, (took, "dim")))
        self._began = None

    def _tenths(self, done: int) -> int:
        return done * 100 // (max(self._total, 1) * PLAIN_SHARE)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(console: Console) -> Progress:
    # the note takes what is left of the line, so that it never pushes the bar onto a second one
    note = TextColumn(
        "{task.fields[note]}", style="dim", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
    )
    label = TextColumn("{task.description}")
    columns = (label, BarColumn(24), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(compact=True), note)
    return Progress(*columns, console=console, transient=True, expand=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "–/s", "dim")


def duration(seconds: float) -> str:
    """``8.2 s``, ``1 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
