"""What is shown, checked on the control codes themselves."""

import pytest

import tiny
from fusionroute import Completion, TraceRecord
from fusionroute.terminal.tokens import PALETTE, coloured_answer, expert_styles, legend, pieces, token_text
from tiny_console import console, shown

STYLES = expert_styles(["math", "code"])


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


def test_a_model_cannot_steer_the_terminal() -> None:
    assert token_text("a\x1b[2J\n\tb\r", "math", "both", STYLES).plain == "a␛[2J\n\tb␍"


def test_the_mark_is_explained_only_where_it_occurs() -> None:
    assert "underlined" not in legend(STYLES, [TraceRecord(1, "math", decided_by="expert")]).plain
    assert "underlined" in legend(STYLES, [TraceRecord(1, "math", decided_by="neither")]).plain
    assert legend(STYLES, []).plain == "math 0%   code 0%"
