"""The page about a router: one file that loads nothing, holds the figures, and takes questions for text."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
import tiny_moe
from fusionroute.errors import DataError, OutputExistsError
from fusionroute.evaluation.report.routing import render, write_routing_report
from fusionroute.evaluation.report.routing_measures import measure_rows
from fusionroute.evaluation.report.routing_projection import PCA
from fusionroute.models.gates import Gates
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.pathways.alignment import alignment
from fusionroute.moe.pathways.pathways import Pathways, record
from fusionroute.moe.questions.questions import Question
from tiny_pathways import pathways

HOSTILE = (
    "</script><script>alert(1)</script><img src='https://example.org/x' onerror=alert(1)>"
    "\u2028\ud800\x1b[31m{{ 7 * 7 }}"
)
LONG = "mmlu_college_electrical_engineering_and_some_more_words_that_never_end"
RESULTS = {
    "base": {"arc": {"value": 0.5, "low": 0.45, "high": 0.55}, "average": 0.5},
    "RoMA": {"arc": 0.58, "average": 0.6},
    "oracle": {"average": 0.75},
}


@pytest.fixture(scope="module")
def pair() -> tuple[Pathways, Pathways]:
    return pathways(40, ("sums", "words", LONG))


@pytest.fixture(scope="module")
def page(pair: tuple[Pathways, Pathways]) -> str:
    return render(*pair, title="RoMA <made up>", results=RESULTS, neighbours=5, projections=[PCA])


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))


def test_nothing_is_loaded_and_only_our_script_runs(page: str) -> None:
    assert not re.search(r"<(link|iframe|object|embed|base|form|img|image|use)\b", page)
    assert not re.search(r"\b(src|srcset|action|xlink:href)=", page)
    assert set(re.findall(r'href="(.)', page)) == {"#"}
    assert "url(" not in page
    assert "@import" not in page
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_links_lead_somewhere(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_the_page_holds_the_figures(page: str, pair: tuple[Pathways, Pathways]) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", page.replace("<wbr>", "")).split())
    for row in measure_rows(alignment(*pair, k=5)):
        for estimate in (row.before, row.after):
            assert f"{estimate.value:.3f} {estimate.low:.3f} to {estimate.high:.3f}" in text.replace("−", "-")
    for recording in pair:
        assert recording.settings["model"] in text
        assert recording.settings["weights"][:12] in text
    assert "RoMA &lt;made up&gt;" in page
    assert LONG in text
    assert "60.0 gap 40 %" in text  # (0.60 − 0.50) / (0.75 − 0.50)
    assert "layers 3, 4" in text
    assert text.count("nats") >= 2


def test_the_script_s_data_are_the_recordings(page: str, pair: tuple[Pathways, Pathways]) -> None:
    before, after = pair
    data = data_of(page)
    assert len(data["questions"]) == page.count('data-q="0"') * 40 / 3 == 40
    for question, asked, first, second in zip(
        data["questions"], before.questions, before.correct, after.correct, strict=True
    ):
        assert question == {"text": asked.text, "answer": asked.answer, "right": [bool(first), bool(second)]}
    weight = data["usage"][1][0]
    assert weight == pytest.approx(before.routing.mean(0).numpy(), abs=1e-4)
    marks = re.findall(r"<path style=[^>]*?( class=\"wrong\")? data-q=", page)
    assert sum(map(bool, marks)) == 2 * int((~before.correct).sum()) + int((~after.correct).sum())


def test_questions_are_text_and_stay_text(tmp_path: Path, pair: tuple[Pathways, Pathways]) -> None:
    hostile = [replace(pair[0].questions[0], prompt=HOSTILE, answer=HOSTILE, task=HOSTILE), *pair[0].questions[1:]]
    recordings = [replace(each, questions=hostile) for each in pair]
    write_routing_report(*recordings, tmp_path / "p.html", title=HOSTILE, neighbours=5, projections=[PCA])
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("<script") == 2
    assert "{{ 7 * 7 }}" in page
    assert data_of(page)["questions"][0]["text"].startswith("</script><script>alert(1)")


def test_pages_are_not_written_over(tmp_path: Path, pair: tuple[Pathways, Pathways]) -> None:
    path = tmp_path / "new" / "page.html"
    options = {"neighbours": 5, "projections": [PCA]}
    assert write_routing_report(*pair, path, title="first", **options) == path
    with pytest.raises(OutputExistsError, match=r"page.html exists; choose another name"):
        write_routing_report(*pair, path, title="second", **options)
    assert "<h1>first</h1>" in path.read_text(encoding="utf-8")
    write_routing_report(*pair, path, title="second", overwrite=True, **options)
    assert "<h1>second</h1>" in path.read_text(encoding="utf-8")
    with pytest.raises(OutputExistsError, match="give a file"):
        write_routing_report(*pair, tmp_path, title="third", overwrite=True, **options)


def test_recordings_of_other_questions_are_refused(tmp_path: Path, pair: tuple[Pathways, Pathways]) -> None:
    with pytest.raises(DataError, match="before has 40 questions, after 30"):
        write_routing_report(pair[0], pathways(30)[1], tmp_path / "page.html", title="x")
    assert not list(tmp_path.iterdir())


def test_one_task_one_layer_and_no_other_methods() -> None:
    page = render(*pathways(12, ("",), layers=1, experts=4), title="small", neighbours=3, projections=[PCA])
    assert "There is one task, so nothing to separate." in page
    assert "all questions" in page
    assert 'id="methods"' not in page


def test_the_page_says_whose_embeddings_they_are() -> None:
    recordings = [
        replace(each, settings=each.settings | {"embedder": "sentence-transformers/<b>any</b>"})
        for each in pathways(12, layers=1, experts=4)
    ]
    page = render(*recordings, title="small", neighbours=3, projections=[PCA])
    assert page.count("embedding (sentence-transformers/&lt;b&gt;any&lt;/b&gt;)") == 1
    assert page.count("embeddings (sentence-transformers/&lt;b&gt;any&lt;/b&gt;)") == 1
    assert "pretrained" not in page


def test_all_projections_that_can_be_had_are_drawn_unless_told() -> None:
    page = render(*pathways(14, layers=1), title="small", neighbours=3)
    assert 'data-tab="PCA"' in page
    assert ('data-tab="t-SNE"' in page) == (len(re.findall(r'class="cloud"', page)) == 6)


def test_recordings_of_a_real_model(tmp_path: Path) -> None:
    """A mixture of experts before and after its gates were moved, recorded and reported."""
    model = tiny_moe.mixture()
    gates = Gates(model, 3)
    questions = [
        Question(letter * (3 + at % 4), ("yes", "no")[at % 2], ("yes", "no"), f"letter {letter}")
        for letter in "abc"
        for at in range(5)
    ]
    prompts = PromptFormat(tiny.tokenizer(), "chat_template")
    before = record(gates, questions, tmp_path / "before", prompt_format=prompts)
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.mul_(3)
    after = record(gates, questions, tmp_path / "after", prompt_format=prompts)
    path = write_routing_report(before, after, tmp_path / "page.html", title="tiny", neighbours=4, projections=[PCA])
    page = path.read_text(encoding="utf-8")
    assert [task.split(" ")[1] for task in data_of(page)["tasks"]] == ["a", "b", "c"]
    entropies = re.findall(r'<th scope="row" class="name">[123]</th><td>([\d.]+)</td><td>([\d.]+)</td>', page)
    assert len(entropies) == 3
    assert all(float(second) < float(first) for first, second in entropies)  # sharper gates are surer
