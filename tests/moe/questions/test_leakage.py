"""Test questions among training questions: copies, near copies, and what only looks like one."""

import pytest
import torch
from torch import Tensor

from fusionroute.errors import DataError, ModelOutputError
from fusionroute.moe.questions.leakage import directions, normalised, overlap, refuse_overlap
from fusionroute.moe.questions.questions import Question

WATER = "All living things need water. Plants take it up through roots; animals drink it."
BRIDGE = "The bridge was opened in 1932. It is 1,149 metres long, and eight lanes of cars cross it."
# SuperGLUE as a training set is made of several tasks; one of them is BoolQ
SUPERGLUE = [
    Question("A cat sat. It purred.\nDoes 'It' mean the cat?", "yes", ("no", "yes"), "wsc"),
    Question(f"{WATER}\nquestion: do plants need water?\nanswer:", "yes", ("no", "yes"), "boolq"),
    Question("He broke it.\nWhat was the cause?", "it fell", ("it fell", "it flew"), "copa"),
    Question(f"{BRIDGE}\nquestion: is the bridge longer than a mile?\nanswer:", "no", ("no", "yes"), "boolq"),
]
BOOLQ = [
    Question(f"{BRIDGE.upper()}\n\nQuestion: Is the bridge longer than a mile?\nAnswer:", "No", ("Yes", "No"), "boolq"),
    Question(f"{WATER}\nquestion: do animals drink?\nanswer:", "yes", ("no", "yes"), "boolq"),
]


def test_boolq_inside_superglue_triggers() -> None:
    found = overlap(SUPERGLUE, BOOLQ)
    assert found.exact == ((3, 0),)
    assert found.rows == {3}
    assert found.tests == {0}
    with pytest.raises(DataError, match=r"training data and BoolQ overlap: 1 of 4 training questions are among the 2"):
        refuse_overlap(found, SUPERGLUE, "BoolQ")
    texts = overlap([each.text for each in SUPERGLUE], [each.text for each in BOOLQ])
    assert texts.exact == ((3, 0),)
    assert found.quotes == found.near == ()


def test_boolq_inside_superglue_triggers_under_another_template() -> None:
    history = " ".join(
        f"In {1900 + year} the town had {year * 37 % 91} mills and {year * 53 % 89} inns." for year in range(9)
    )
    geology = " ".join(f"Layer {n} is {n * 41 % 83} metres of slate over {n * 29 % 71} of marl." for n in range(9))
    train = [
        Question(f"Read and say yes or no. {passage} Is it true that {asked}", "yes", ("yes", "no"), "boolq")
        for passage, asked in ((history, "there were inns?"), (geology, "slate is deep?"))
    ]
    others = [
        Question(f"Read and say yes or no. Thing {n} is like thing {n + 1}?", "no", ("yes", "no")) for n in range(50)
    ]
    boolq = Question(f"{geology}\nQuestion: slate is deep\nAnswer:", "Yes", ("No", "Yes"))
    found = overlap([*others, *train], [boolq])
    assert [pair[:2] for pair in found.quotes] == [(51, 0)]
    assert 0.6 < found.quotes[0][2] < 1
    assert found.rows == {51}
    assert found.tests == {0}
    with pytest.raises(DataError, match=r"\(0 word for word, 1 by most of their words, 0 nearly"):
        refuse_overlap(found, [*others, *train])
    assert not overlap([*others, train[0]], [boolq])
    other_answer = Question(boolq.prompt, "slate", ("slate", "marl"))
    assert not overlap(train, [other_answer])


def test_a_template_is_no_quotation() -> None:
    """Forty words in common, which stand in every question, and one or two that do not."""
    template = " ".join(f"word{n}" for n in range(40))
    train, test = ([f"{template} thing {n} and no other" for n in range(start, start + 40)] for start in (0, 100))
    assert not overlap(train, test)
    assert len(overlap([template], [f"{template} thing"]).quotes) == 1


def test_boolq_without_itself_passes() -> None:
    others = [each for each in SUPERGLUE if each.task != "boolq"]
    found = overlap(others, BOOLQ)
    assert not found
    refuse_overlap(found, others)
    assert str(found).startswith("0 of 2 training questions")


def test_texts_are_the_same_but_for_case_space_punctuation_and_forms() -> None:
    assert normalised("  The CAT,\n“sat” – there!") == normalised("the cat sat there") == "the cat sat there"
    assert normalised("ｆｕｌｌ ﬁne Straße") == "full fine strasse"
    assert normalised("_a_b_") == "a b"
    assert normalised("3 + 5 = ?") == normalised("3+5=") == "3 + 5 ="
    assert len({normalised(text) for text in ("3 + 5", "3 - 5", "3 * 5", "3 − 5", "35", "3 5")}) == 6


def test_options_may_stand_in_the_prompt() -> None:
    apart = Question("Which one barks?", "dog", ("cat", "dog"))
    inside = Question("Which one barks? cat, dog.", "dog")
    assert overlap([apart], [inside]).exact == ((0, 0),)
    assert overlap([inside], [apart]).exact == ((0, 0),)
    assert not overlap([apart], [Question("Which one barks? cow, dog.", "dog")])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (("True", ("True", "False")), ("yes", ("no", "yes"))),
        (("A", ("A", "B")), ("no", ("no", "yes"))),
        (("2", ("1", "2")), ("not_entailment", ("entailment", "not_entailment"))),
        (("neutral", ("entailment", "neutral", "contradiction")), ("not_entailment", ("entailment", "not_entailment"))),
        (("(B)", ("(A)", "(B)")), ("it is longer", ("it is longer", "it is shorter"))),
    ],
)
def test_labels_tell_no_question_from_another(
    ours: tuple[str, tuple[str, ...]], theirs: tuple[str, tuple[str, ...]]
) -> None:
    """BoolQ says True and False where it stands alone, and yes and no inside SuperGLUE."""
    alike = (circle(0), circle(5))
    one, other = (Question(SUPERGLUE[3].prompt, *each) for each in (ours, theirs))
    assert overlap([one], [other]).exact == overlap([other], [one]).exact == ((0, 0),)
    reworded = Question(f"Say it. {other.text}", *theirs)
    assert overlap([one], [reworded], embeddings=alike).rows == {0}
    assert overlap([reworded], [one], embeddings=alike).rows == {0}


def test_labels_of_one_kind_are_answers() -> None:
    alike = (circle(0), circle(5))

    def near(ours: Question, theirs: Question) -> bool:
        return bool(overlap([ours], [theirs], embeddings=alike))

    assert not near(Question("is 7 prime?", "yes"), Question("is 8 prime?", "No"))
    assert near(Question("is 7 prime?", "yes"), Question("is seven prime?", "True"))
    assert not near(Question("is 7 prime?", "yes"), Question("is 8 prime?", "no", ("no", "yes")))
    assert not near(Question("7 or 8?", "A", ("A", "B")), Question("9 or 8?", "B", ("A", "B", "C")))
    assert not near(Question("is 7 prime?", "yes"), Question("what is 7?", "a prime", ("a prime", "even")))


def test_messages_are_what_the_user_says() -> None:
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is the sky blue?"}
    plain = Question(user["content"], "yes")
    for prompt in ([user], [system, user]):
        assert overlap([Question(prompt, "yes")], [plain]).exact == ((0, 0),)
        assert overlap([plain], [Question(prompt, "yes")]).exact == ((0, 0),)
    assert not overlap([Question([system], "yes")], [plain])


def test_one_prompt_with_other_options_and_another_answer_is_another_question() -> None:
    cats = Question("Which of these is true?", "cats purr", ("cats purr", "cats bark"))
    dogs = Question("Which of these is true?", "dogs bark", ("dogs bark", "dogs purr"))
    assert not overlap([cats], [dogs])
    assert overlap([cats], [Question(cats.prompt, "Cats purr.", ("cats fly", "Cats purr."))])
    assert overlap([cats], [Question(cats.prompt, "cats purr", ("cats bark", "cats purr"))])
    assert overlap([cats], ["which of these is true"])
    alike = torch.ones(1, 2)
    assert not overlap([cats], [dogs], embeddings=(alike, alike))


def circle(*degrees: float) -> Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_near_copies_have_a_cosine_above_the_threshold() -> None:
    train, test = ["a", "b", "c", "same"], ["d", "e", "SAME!"]
    embeddings = (circle(0, 40, 90, 180) * 7, circle(17, 25, 178))  # cos 18.2° = 0.95
    found = overlap(train, test, embeddings=embeddings)
    assert found.exact == ((3, 2),)
    assert [pair[:2] for pair in found.near] == [(0, 0), (1, 1)]
    torch.testing.assert_close(
        torch.tensor([pair[2] for pair in found.near]), torch.tensor([17.0, 15.0]).deg2rad().cos()
    )
    assert found.rows == {0, 1, 3}
    assert found.tests == {0, 1, 2}
    assert [pair[:2] for pair in overlap(train, test, embeddings=embeddings, threshold=0.96).near] == [(1, 1)]
    assert "3 of 4 training questions" in str(found)
    assert "(1 word for word, 0 by most of their words, 2 nearly, with a cosine above 0.95)" in str(found)


def test_prompts_that_are_merely_alike_need_one_answer() -> None:
    alike = (circle(0), circle(5))

    def near(ours: str, theirs: str) -> bool:
        return bool(overlap([Question("after h?", ours)], [Question("after y?", theirs)], embeddings=alike))

    assert not near("i", "z")
    assert not near("1", "12")
    assert near("Z", "z.")
    assert near("12", "6 and 6 are 12")
    assert overlap([Question("after h?", "i")], ["after y?"], embeddings=alike)
    assert overlap([Question("after h?", "i")], [Question("After: h", "z")]).exact  # one prompt is one question
    assert not overlap([Question("a?", "no", ("no", "yes"))], [Question("b?", "yes", ("no", "yes"))], embeddings=alike)


def test_embeddings_that_are_no_numbers_are_refused() -> None:
    """No cosine of theirs is above the threshold, so that everything would pass."""
    broken = circle(0, 5)
    broken[1] = torch.nan
    with pytest.raises(ModelOutputError, match="1 of 2 embeddings are no numbers"):
        overlap("ab", "cd", embeddings=(circle(0, 5), broken))


def test_hidden_states_are_counted_from_their_centre() -> None:
    """They all lie to one side, where every cosine is near 1."""
    train, test, aside = circle(0, 120, 240), circle(5, 60), torch.tensor([100.0, 0.0])
    embeddings = (train + aside, test + aside)
    assert len(overlap("abc", "de", embeddings=embeddings).near) == 3
    assert [pair[:2] for pair in overlap("abc", "de", embeddings=embeddings, centre=aside).near] == [(0, 0)]
    torch.testing.assert_close(directions(embeddings[0], aside), train)
    assert directions(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


def test_many_rows_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusionroute.moe.questions.leakage.ROWS_TOGETHER", 3)
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(10, 8, generator=generator), torch.randn(5, 8, generator=generator)
    test[2] = train[7]
    found = overlap([str(n) for n in range(10)], "vwxyz", embeddings=(train, test))
    assert [pair[:2] for pair in found.near] == [(7, 2)]


def test_the_error_shows_rows() -> None:
    train = ["first", "second " * 50, "third"]
    with pytest.raises(
        DataError, match=r"the evaluation questions overlap: .*row 2: 'second second .*…'; row 3: 'third'"
    ):
        refuse_overlap(overlap(train, train[1:]), train)
