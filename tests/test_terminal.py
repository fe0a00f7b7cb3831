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
    ensembling_table,
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


def checked(text: str, verdicts: list[str], experts: list[str] | None = None) -> Completion:
    """An answer of one token a byte whose tokens were checked, ended by the end-of-sequence token."""
    ids = [*tiny.tokenizer()(text, add_special_tokens=False).input_ids, tiny.EOS]
    experts = experts or ["math"] * len(ids)
    trace = [TraceRecord(i, e, decided_by="neither", verdict=v) for i, e, v in zip(ids, experts, verdicts, strict=True)]
    return Completion(text, ids, "stop", trace)


def test_ensembled_tokens_are_bold_and_replaced_ones_underlined_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bold and underlined hold on black and white; where there is a verdict, the decider has no say."""
    monkeypatch.setenv("NO_COLOR", "1")
    where = console(terminal=True)
    verdicts = ["consensus", "ensembled", "replaced", "continued", "alone", "majority"]
    where.print(coloured_answer(checked("abcde", verdicts), tiny.tokenizer(), STYLES))
    assert shown(where) == "a\x1b[1mb\x1b[0m\x1b[1;4mc\x1b[0m\x1b[1md\x1b[0me\n"


def test_an_ensembled_token_has_the_colour_of_whoever_wanted_it_most() -> None:
    where = console(terminal=True)
    answer = checked("ab", ["consensus", "replaced", "alone"], ["math", "code", "math"])
    where.print(coloured_answer(answer, tiny.tokenizer(), STYLES))
    assert shown(where) == "\x1b[38;2;86;180;233ma\x1b[0m\x1b[1;4;38;2;230;159;0mb\x1b[0m\n"


@pytest.mark.parametrize("explain", [True, False])
def test_the_legend_counts_what_was_ensembled_and_says_why_the_rest_was_kept(explain: bool) -> None:
    verdicts = ["consensus"] * 6 + ["majority", "boundary", "ensembled", "replaced", "continued", "replaced"]
    found = legend(STYLES, checked("x" * 11, verdicts).trace, explain=explain)
    assert found.plain.splitlines() == [
        "math 100%   code 0%",
        "ensembled 3 of 12 tokens (E/T 25.0 %), 2 of them replaced · kept: consensus 50 %, majority 8 %, boundary 8 %",
    ]
    where = console(terminal=False, width=200)
    where.print(found)
    assert "\x1b" not in shown(where)


def test_a_legend_where_nothing_was_ensembled_or_nothing_kept() -> None:
    assert (
        legend({}, checked("x", ["alone"] * 2).trace).plain
        == "\nensembled 0 of 2 tokens (E/T 0.0 %) · kept: alone 100 %"
    )
    assert legend({}, checked("x", ["ensembled"] * 2).trace).plain == "\nensembled 2 of 2 tokens (E/T 100.0 %)"


def test_the_legend_tells_what_the_answer_cost() -> None:
    cost = {"drafted": 8, "kept": 6, "tokens_read": {"math": 15, "code": 10}}
    found = legend(STYLES, checked("x" * 9, ["consensus"] * 10).trace, cost=cost)
    assert found.plain.splitlines()[-1] == (
        "kept 6 of 8 drafted tokens (acceptance 75.0 %) · tokens read per written token: math 1.50, code 1.00"
    )
    nothing = legend(STYLES, checked("", ["alone"]).trace, cost=cost | {"drafted": 0, "kept": 0})
    assert "kept 0 of 0 drafted tokens · tokens read" in nothing.plain
    assert "drafted" not in legend(STYLES, [], cost=cost).plain


def test_what_occurs_is_not_shown_as_none() -> None:
    found = legend({}, [TraceRecord(1, "math", verdict=v) for v in ["consensus"] * 999 + ["boundary"]])
    assert found.plain.endswith("kept: consensus 100 %, boundary < 1 %")


def test_pieces_leave_out_tokens_without_text_unless_asked() -> None:
    """Half a character, a special token: they show nothing, but they are tokens, and their verdicts count."""
    completion = checked("é", ["ensembled", "alone", "consensus"])
    assert [(each.text, each.verdict) for each in pieces(completion, tiny.tokenizer())] == [("é", "alone")]
    every = list(pieces(completion, tiny.tokenizer(), include_empty=True))
    assert [(each.text, each.verdict) for each in every] == [("", "ensembled"), ("é", "alone"), ("", "consensus")]


def test_methods_that_check_tokens_have_a_table_of_their_own() -> None:
    reads = {"tokens_read_per_token": {"math": 1.1, "code": 1.456}}
    costs = {"alone": reads, "SAFE": reads | {"ensembled_per_token": 0.0357, "acceptance": 0.925}}
    costs["GaC"] = reads | {"ensembled_per_token": 1.0}
    where = console(terminal=False)
    where.print(ensembling_table(costs))
    rows = [" ".join(line.split()) for line in shown(where).splitlines()]
    assert "SAFE 3.6 92.5 math 1.10, code 1.46" in rows
    assert "GaC 100.0 – math 1.10, code 1.46" in rows
    assert "alone" not in shown(where)
    assert ensembling_table({"alone": reads}) is None


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
