from typing import Any

from fusionroute.engine.sequence import VERDICTS
from fusionroute.evaluation.report import examples
from fusionroute.evaluation.report.examples import first_seeds, json_text, payload, questions
from fusionroute.evaluation.report.results import Results


def cell(method: str, verdicts: dict[int, float], seed: int | None = None, **more: Any) -> dict[str, Any]:
    answers = [
        {"id": at, "prompt": f"q{at}", "target": "t", "answer": f"{method} {at}", "score": score, "finish_reason": None}
        | {"tokens": None}
        | more
        for at, score in verdicts.items()
    ]
    return {"method": method, "task": "sums", "seed": seed, "metric": "acc,none", "value": 0, "examples": answers}


def results(*methods: str) -> Results:
    record = {"format": "fusionroute.comparison", "methods": list(methods), "tasks": ["sums"], "reference": methods[0]}
    return Results(record)


def shown(found: dict[str, Any]) -> list[Any]:
    return [item["id"] for item in found["tasks"][0]["items"]]


def test_each_method_is_taken_by_its_lowest_seed() -> None:
    cells = [cell("a", {0: 1.0}, seed=2), cell("a", {0: 0.0}, seed=1), cell("b", {0: 1.0}, seed=None)]
    assert [found["seed"] for found in first_seeds(cells).values()] == [1, None]


def test_answers_are_matched_by_id_whatever_their_order() -> None:
    cells = [cell("a", {3: 1.0, 1: 0.0}), cell("b", {1: 1.0, 2: 1.0})]
    found = payload(results("a", "b"), cells, {}, count=9)
    texts = {i["id"]: [a and a["text"] for a in i["answers"]] for i in found["tasks"][0]["items"]}
    assert texts == {1: ["a 1", "b 1"], 2: [None, "b 2"], 3: ["a 3", None]}


def test_won_and_lost_questions_alternate_and_agreement_comes_last() -> None:
    reference = {0: 1.0, 1: 0.0, 2: 1.0, 3: 0.0, 4: 1.0, 5: 0.0}
    other = {0: 1.0, 1: 0.0, 2: 0.0, 3: 1.0, 4: 0.0, 5: 1.0}
    cells = [cell("a", reference), cell("b", other)]
    order = [question.id for question in questions(results("a", "b"), cells)["sums"]]
    assert order == [2, 3, 4, 5, 1, 0]
    assert shown(payload(results("a", "b"), cells, {}, count=2)) == [2, 3]


def test_the_most_disputed_question_comes_first() -> None:
    cells = [cell("a", {0: 1.0, 1: 1.0}), cell("b", {0: 1.0, 1: 0.0}), cell("c", {0: 1.0, 1: 0.0})]
    cells.append(cell("d", {0: 0.0, 1: 1.0}))
    assert [q.id for q in questions(results("a", "b", "c", "d"), cells)["sums"]] == [1, 0]


def test_the_count_of_what_was_asked_stays_known() -> None:
    found = payload(results("a"), [cell("a", dict.fromkeys(range(7), 1.0))], {}, count=3)
    assert (found["tasks"][0]["asked"], len(found["tasks"][0]["items"])) == (7, 3)


def test_tokens_name_their_writers_by_number() -> None:
    tokens = {"text": ["x", "y", "z"], "expert": ["code", "math", "lone"], "decided_by": ["both", "router", "both"]}
    found = payload(results("a"), [cell("a", {0: 1.0}, tokens=tokens)], {"math": "#111111", "code": "#222222"}, count=1)
    answer = found["tasks"][0]["items"][0]["answers"][0]
    assert (answer["tokens"], answer["by"], answer["decided"]) == (["x", "y", "z"], [1, 0, 2], [0, 1, 0])
    assert [expert["colour"] for expert in found["experts"]] == ["#111111", "#222222", None]
    assert found["deciders"] == ["both", "router"]


def test_one_writer_of_all_tokens_is_one_number() -> None:
    tokens = {"text": ["x", "y"], "expert": ["math", "math"], "decided_by": ["expert", "expert"]}
    found = payload(results("a"), [cell("a", {0: 1.0}, tokens=tokens)], {"math": "#111111"}, count=1)
    answer = found["tasks"][0]["items"][0]["answers"][0]
    assert (answer["by"], answer["decided"]) == (0, 0)


def test_checked_tokens_name_their_verdicts_and_what_each_model_gave_them() -> None:
    tokens = {"text": ["x", "y"], "expert": ["math", "math"], "decided_by": ["expert", "expert"]}
    tokens |= {"verdict": ["consensus", "replaced"], "support": {"math": [0.9, 0.2], "code": [None, 0.7]}}
    plain = {"text": ["x"], "expert": ["code"], "decided_by": ["expert"]}
    cells = [cell("a", {0: 1.0}, tokens=tokens), cell("b", {0: 0.0}, tokens=plain)]
    found = payload(results("a", "b"), cells, {}, count=1)
    checked, other = found["tasks"][0]["items"][0]["answers"]
    assert [found["verdicts"][at]["name"] for at in checked["verdict"]] == ["consensus", "replaced"]
    assert found["verdicts"][1]["meaning"] == VERDICTS["replaced"]
    assert checked["support"] == {"math": [0.9, 0.2], "code": [None, 0.7]}
    assert not {"verdict", "support"} & other.keys()


def test_long_answers_are_cut_and_say_so() -> None:
    text = "x" * (examples.LONGEST + 1500)
    tokens = {"text": ["ab "] * 9000, "expert": ["m"] * 9000, "decided_by": ["both"] * 9000}
    tokens |= {"verdict": ["consensus", "ensembled"] * 4500, "support": {"m": [0.5] * 9000}}
    cells = [cell("a", {0: 1.0}, answer=text), cell("b", {0: 0.0}, tokens=tokens)]
    plain, coloured = payload(results("a", "b"), cells, {}, count=1)["tasks"][0]["items"][0]["answers"]
    assert plain["text"] == "x" * examples.LONGEST + " … [1,500 more characters]"
    assert (len(coloured["tokens"]), coloured["written"]) == (examples.LONGEST // 3, 9000)
    assert len(coloured["verdict"]) == len(coloured["support"]["m"]) == examples.LONGEST // 3


def test_a_page_that_grows_too_large_shows_fewer_questions(monkeypatch: Any) -> None:
    monkeypatch.setattr(examples, "BUDGET", 1000)
    found = payload(results("a"), [cell("a", dict.fromkeys(range(50), 1.0), answer="x" * 200)], {}, count=20)
    assert 1 < len(shown(found)) < 5


def test_json_for_scripts_has_no_markup_and_no_lone_surrogate() -> None:
    text = json_text({"<a>": "</script>&\u2028\ud800 é"})
    assert text == '{"\\u003ca\\u003e":"\\u003c/script\\u003e\\u0026\\u2028\\ud800 é"}'
