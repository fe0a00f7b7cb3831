"""The worked example of the paper (Figure 3): "Ensemble position is Incorrect", spaces left out."""

import pytest

from fusionroute.methods.safe import Safe
from fusionroute.models.member import Member
from tests.tiny_members import Known, byte_level
from tests.tiny_safe import Table, scripted, write

LINE = ("En", "position", "is", "Correct")


def known(name: str, *words: str) -> Known:
    return byte_level(name, [*LINE, *words])


def member(name: str, words: tuple[str, ...], table: Table) -> Member:
    return scripted(known(name, *words), {**table, "Correct": {"<eos>": 0.99}})


@pytest.fixture(scope="module")
def figure() -> list[Member]:
    """The figure's probabilities; both verifiers would rather write `Correct` where the draft has `Inc`."""
    drafter = {
        "?": {"En": 0.9}, "En": {"semb": 0.7}, "semb": {"le": 0.9}, "le": {"position": 0.6}, "position": {"is": 1.0},
        "is": {"Inc": 0.7, "Correct": 0.29}, "Inc": {"orr": 0.8}, "orr": {"ect": 0.9},
    }  # fmt: skip
    first = {
        "?": {"En": 0.9}, "En": {"s": 0.8}, "s": {"emble": 0.9}, "emble": {"position": 0.7}, "position": {"is": 1.0},
        "is": {"Inc": 0.3, "Correct": 0.69}, "Inc": {"orrect": 0.7},
    }  # fmt: skip
    second = {
        "?": {"En": 0.9}, "En": {"semble": 0.9}, "semble": {"position": 0.5}, "position": {"is": 1.0},
        "is": {"Incorrect": 0.2, "Correct": 0.79},
    }  # fmt: skip
    return [
        member("drafter", ("semb", "le", "Inc", "orr", "ect"), drafter),
        member("first", ("emble", "Inc", "orrect"), first),
        member("second", ("semble", "Incorrect"), second),
    ]


def test_verifiers_cut_the_text_as_in_the_figure(figure: list[Member]) -> None:
    text = b"EnsemblepositionisIncorrect"
    pieces = [[each.pieces.text([id]) for id in each.pieces.encode(text)] for each in figure[1:]]
    assert pieces == [
        [b"En", b"s", b"emble", b"position", b"is", b"Inc", b"orrect"],
        [b"En", b"semble", b"position", b"is", b"Incorrect"],
    ]


@pytest.mark.parametrize("host", ["unite", "gac"])
def test_the_figure(figure: list[Member], host: str) -> None:
    (answer,) = write(Safe(figure, draft_length=8, host=host, gate=None), ["?"])
    assert answer.text == "EnsemblepositionisCorrect"
    averages = [sum(record.support) / 3 for record in answer.trace]
    verdicts = [record.verdict for record in answer.trace]
    # a majority would keep each of the first five too; that every verifier prefers its own token comes first
    assert verdicts[:6] == ["consensus", "consensus", "boundary", "consensus", "consensus", "replaced"]
    assert averages[:6] == pytest.approx([0.9, 0.8, 0.0, 0.6, 1.0, 0.4], abs=2e-3)
    assert answer.trace[2].support == ()  # `le`: `semb` is OOV-like
    assert [record.expert for record in answer.trace[:5]] == ["drafter"] * 5
    assert answer.trace[5].expert == "second"  # gives the most to `Correct`
    assert answer.finish_reason == "stop"


def test_what_follows_an_oov_like_token_is_not_ensembled() -> None:
    """Section 3.3: `Inc|orr|ect` against `Incorrect`: an ensemble is allowed at `Inc` and behind `ect`, not inside."""
    drafter = member(
        "drafter",
        ("Inc", "orr", "ect"),
        {"?": {"Inc": 0.9}, "Inc": {"orr": 0.9}, "orr": {"ect": 0.9}, "ect": {"is": 0.4}},
    )
    verifier = member("verifier", ("Incorrect",), {"?": {"Incorrect": 0.9}, "Incorrect": {"En": 0.9}})
    (answer,) = write(Safe([drafter, verifier], draft_length=4), ["?"], max_new_tokens=4)
    verdicts = [record.verdict for record in answer.trace]
    assert verdicts == ["consensus", "boundary", "boundary", "replaced"]
    assert answer.text == "IncorrectEn"
