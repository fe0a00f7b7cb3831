"""What is shown, checked on the control codes themselves."""

import io

import pytest
from rich.console import Console

import tiny
from fusionroute import Completion, TraceRecord
from fusionroute.evaluation.statistics import Estimate
from fusionroute.terminal import (
    PALETTE,
    RichProgress,
    coloured_answer,
    comparison_table,
    duration,
    expert_styles,
    legend,
    pieces,
    token_text,
)

STYLES = expert_styles(["math", "code"])


def console(*, terminal: bool, width: int = 100, **options: object) -> Console:
    system = "truecolor" if terminal else None
    return Console(file=io.StringIO(), force_terminal=terminal, color_system=system, width=width, **options)


def shown(where: Console) -> str:
    assert isinstance(where.file, io.StringIO)
    return where.file.getvalue()


def written(text: str, experts: list[str], deciders: list[str] | None = None) -> Completion:
    """An answer of one token a byte, ended by the end-of-sequence token."""
    ids = [*tiny.tokenizer()(text, add_special_tokens=False).input_ids, tiny.EOS]
    deciders = deciders or ["both"] * len(ids)
    trace = [TraceRecord(token_id=i, expert=e, decided_by=d) for i, e, d in zip(ids, experts, deciders, strict=True)]
    return Completion(text, ids, "stop", trace)


def test_styles_are_stable_and_differ_beyond_the_palette() -> None:
    many = expert_styles([f"e{at}" for at in range(2 * len(PALETTE))])
    assert len(set(map(str, many.values()))) == 2 * len(PALETTE)
    assert expert_styles(["a", "b"])["a"] == expert_styles(["a", "b", "c"])["a"]


def test_a_character_belongs_to_the_token_that_completes_it() -> None:
    completion = written("aé", ["math", "math", "code", "math"])
    assert [(piece.text, piece.expert) for piece in pieces(completion, tiny.tokenizer())] == [
        ("a", "math"),
        ("é", "code"),
    ]


def test_half_a_character_at_the_end_is_shown_as_the_text_has_it() -> None:
    tokenizer = tiny.tokenizer()
    ids = tokenizer("é", add_special_tokens=False).input_ids[:1]
    completion = Completion(tokenizer.decode(ids), ids, "length", [TraceRecord(ids[0], "math")])
    assert "".join(piece.text for piece in pieces(completion, tokenizer)) == completion.text


def test_the_answer_ends_where_its_text_ends() -> None:
    """A stop string was met: tokens of it stand in the trace, but not in the text."""
    completion = written("abcd", ["math"] * 5)
    cut = Completion("ab", completion.token_ids, "stop", completion.trace)
    assert coloured_answer(cut, tiny.tokenizer(), STYLES).plain == "ab"


def test_each_token_has_its_experts_style_and_overruled_ones_are_marked() -> None:
    where = console(terminal=True)
    completion = written("ab", ["math", "code", "code"], ["both", "router", "both"])
    where.print(coloured_answer(completion, tiny.tokenizer(), STYLES))
    assert shown(where) == "\x1b[38;2;86;180;233ma\x1b[0m\x1b[4;38;2;230;159;0mb\x1b[0m\n"


def test_no_control_codes_where_there_is_no_terminal() -> None:
    where = console(terminal=False)
    completion = written("ab", ["math", "code", "code"], ["both", "router", "both"])
    where.print(coloured_answer(completion, tiny.tokenizer(), STYLES))
    where.print(legend(STYLES, completion.trace))
    assert "\x1b" not in shown(where)
    assert shown(where).startswith("ab\nmath 33%   code 67%   underlined:")


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    where = console(terminal=True)
    where.print(token_text("a", "math", "router", STYLES))
    assert shown(where) == "\x1b[4ma\x1b[0m\n"


def test_a_model_cannot_steer_the_terminal() -> None:
    assert token_text("a\x1b[2J\n\tb\r", "math", "both", STYLES).plain == "a␛[2J\n\tb␍"


def test_the_mark_is_explained_only_where_it_occurs() -> None:
    assert "underlined" not in legend(STYLES, [TraceRecord(1, "math", decided_by="expert")]).plain
    assert "underlined" in legend(STYLES, [TraceRecord(1, "math", decided_by="neither")]).plain
    assert legend(STYLES, []).plain == "math 0%   code 0%"


def test_the_table_highlights_the_best_of_each_column() -> None:
    rows = {
        "one": {"sums": Estimate(0.5, 0.4, 0.6, 10, 0.05), "average": Estimate(0.25, 0.2, 0.3, 20, 0.03)},
        "two": {"sums": Estimate(0.4, 0.3, 0.5, 10, 0.05), "average": Estimate(1.0, 0.9, 1.0, 20, 0.03)},
    }
    where = console(terminal=True)
    where.print(comparison_table(rows, title="right", caption="n = 10"))
    best = "\x1b[1;38;2;0;158;115m"
    assert f"{best}50" in shown(where)
    assert f"{best}100" in shown(where)
    assert f"{best}40" not in shown(where)
    plain = console(terminal=False)
    plain.print(comparison_table(rows))
    assert "40–60" in shown(plain)
    assert "\x1b" not in shown(plain)


def test_progress_without_a_terminal_is_a_line_for_each_tenth() -> None:
    where = console(terminal=False)
    with RichProgress(where) as progress:
        progress.start("train", 20)
        for step in range(20):
            progress.advance(1, f"loss {20 - step}")
        progress.finish("trained")
        progress.finish("a line without a bar")
    lines = shown(where).splitlines()
    assert lines[:3] == ["train (20)", "  10 %  loss 19", "  20 %  loss 17"]
    assert lines[-2].startswith("✓ trained (")
    assert lines[-1] == "✓ a line without a bar"
    assert "\x1b" not in shown(where)


def test_an_error_gives_the_terminal_back() -> None:
    where = console(terminal=True)
    with pytest.raises(KeyboardInterrupt):
        _interrupt(RichProgress(where))
    hidden, visible = "\x1b[?25l", "\x1b[?25h"
    assert shown(where).rfind(visible) > shown(where).rfind(hidden) >= 0


def _interrupt(progress: RichProgress) -> None:
    with progress:
        progress.start("train", 3)
        progress.advance(1)
        raise KeyboardInterrupt


def test_progress_keeps_its_last_note() -> None:
    where = console(terminal=True)
    with RichProgress(where) as progress:
        progress.start("train", 3)
        progress.advance(1, "loss 0.5")
        progress.advance(1)
    assert "loss 0.5" in shown(where)
    assert "train" in shown(where)


@pytest.mark.parametrize(("seconds", "text"), [(8.24, "8.2 s"), (65, "1 min 05 s"), (3599.6, "60 min 00 s")])
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text
