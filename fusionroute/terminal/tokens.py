"""Answers in the colours of who wrote each token, and what the colours mean."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.style import Style
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
# What a model writes must not steer the terminal: control characters are shown as their pictures (␛ for escape).
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


@dataclass(frozen=True)
class Piece:
    """Text that can be shown once a token is written, and who wrote that token; see `TraceRecord`."""

    text: str
    expert: str
    decided_by: str
    verdict: str = ""
    support: tuple[float, ...] = ()


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
