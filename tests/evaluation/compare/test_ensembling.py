"""What was ensembled, against counts by hand, and of a real comparison against its own traces."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from fusionroute.engine.sequence import ENSEMBLED, VERDICTS, Completion, TraceRecord
from fusionroute.evaluation.compare.cost import ensembles, total_cost
from fusionroute.evaluation.compare.ensembling import ensembling
from fusionroute.evaluation.compare.run import compare
from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.terminal.progress import RichProgress
from tiny_members import byte_level, with_fallback


def cell(task: str, *answers: list[str] | None, **cost: Any) -> dict[str, Any]:
    examples = [{"tokens": None if a is None else {"expert": ["m"] * len(a), "verdict": a}} for a in answers]
    return {"task": task, "examples": examples, "cost": {"tokens_written": 1, **cost}}


def test_shares_and_e_over_t_count_tokens_of_all_answers() -> None:
    cells = [
        cell("sums", ["consensus", "ensembled"], ["replaced", "continued"]),
        cell("sums", ["consensus"] * 4),
        cell("words", ["alone"], None),
    ]
    found = ensembling(cells)
    assert found is not None
    sums, words = found["by_task"]["sums"], found["by_task"]["words"]
    assert (sums["tokens"], sums["ensembled"]) == (8, 0.25)
    assert sums["verdicts"] == {"consensus": 0.625, "ensembled": 0.125, "replaced": 0.125, "continued": 0.125}
    assert (words["tokens"], words["ensembled"], words["verdicts"]) == (1, 0.0, {"alone": 1.0})


def test_positions_count_answers_alike() -> None:
    """The first of two tokens is the first half of its answer; the other answer ensembles nowhere."""
    found = ensembling([cell("sums", ["replaced", "consensus"], ["consensus"] * 20)])
    assert found is not None
    assert found["by_task"]["sums"]["ensembled_by_tenth"] == pytest.approx([0.5] * 5 + [0.0] * 5)


def test_methods_without_verdicts_have_none() -> None:
    plain = {"task": "sums", "examples": [{"tokens": {"text": ["a"], "expert": ["m"]}}, {"tokens": None}]}
    assert ensembling([plain]) is None
    assert ensembles([Completion("a", [1], "stop", [TraceRecord(1, "m")])]) == {}


def test_costs_of_cells_are_weighed_by_their_tokens() -> None:
    shared = {"seconds": 1.0, "tokens_read": {}, "peak_memory": {}, "batch": 1}
    cells = [
        cell("sums", ensembled=1, of_tokens=10, drafted=12, kept=9, **shared),
        cell("words", ensembled=5, of_tokens=10, drafted=0, kept=0, **shared),  # an interrupted run had written all
        cell("choices", **shared),
    ]
    found = total_cost(cells)
    assert found is not None
    assert (found["ensembled_per_token"], found["acceptance"]) == (0.3, 0.75)
    assert not {"ensembled_per_token", "acceptance"} & (total_cost(cells[2:]) or {}).keys()


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Two random models of different tokenizers: alone, at every token, and by SAFE."""
    folder = tmp_path_factory.mktemp("ensembling")
    experts = {}
    for known in (byte_level("bytes", ["the ", "né"], seed=1), with_fallback("pieces", ["th", "e ", "né"], seed=2)):
        experts[known.member.name] = str(folder / known.member.name)
        known.member.model.save_pretrained(experts[known.member.name])
        known.tokenizer.save_pretrained(experts[known.member.name])
    data = folder / "say.jsonl"
    data.write_text("".join(json.dumps({"question": f"say {at}:", "answer": "the né"}) + "\n" for at in range(3)))
    task = {
        "task": "say", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "output_type": "generate_until", "generation_kwargs": {"until": [], "max_gen_toks": 24},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / "say.yaml").write_text(yaml.safe_dump(task))
    methods = {
        "alone": {"method": "single", "expert": "bytes"},
        "UniTE": {"method": "unite", "drafter": "bytes"},
        "GaC+SAFE": {"method": "safe", "host": "gac", "drafter": "bytes", "draft_length": 3},
    }
    settings = CompareSettings.parse(
        {"experts": experts, "seeds": [0], "methods": methods, "include": [str(folder)], "tasks": ["say"]}
        | {"prompt": None, "device": "cpu"}
    )
    with RichProgress(Console(quiet=True)) as progress:
        return compare(settings, folder / "out", progress=progress), folder / "out"


def of_method(output: Path, method: str) -> dict[str, Any]:
    (path,) = (output / "cells" / method / "say").glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", ["unite", "gac-safe"])
def test_every_token_of_a_cell_has_its_verdict(comparison: tuple[dict[str, Any], Path], method: str) -> None:
    measured = of_method(comparison[1], method)
    columns = [each["tokens"] for each in measured["examples"]]
    verdicts = [verdict for tokens in columns for verdict in tokens["verdict"]]
    assert len(verdicts) == measured["cost"]["of_tokens"] == measured["cost"]["tokens_written"]
    assert sum(verdict in ENSEMBLED for verdict in verdicts) == measured["cost"]["ensembled"] > 0
    assert set(verdicts) <= VERDICTS.keys()
    assert 0 < measured["cost"]["kept"] <= measured["cost"]["drafted"]
    for example, tokens in zip(measured["examples"], columns, strict=True):
        assert "".join(tokens["text"]) == example["answer"]
        assert list(tokens["support"]) == ["bytes", "pieces"]
        assert {len(column) for column in tokens["support"].values()} == {len(tokens["verdict"])}
        for verdict, *support in zip(tokens["verdict"], *tokens["support"].values(), strict=True):
            assert verdict in ("boundary", "alone", "gate", "continued") or None not in support
            assert all(share is None or 0 <= share <= 1 for share in support)


def test_the_results_say_what_the_traces_say(comparison: tuple[dict[str, Any], Path]) -> None:
    record, output = comparison
    assert record["failed"] == []
    assert list(record["ensembling"]) == ["UniTE", "GaC+SAFE"]
    for method, name in (("UniTE", "unite"), ("GaC+SAFE", "gac-safe")):
        cost = of_method(output, name)["cost"]
        assert record["cost"][method]["ensembled_per_token"] == cost["ensembled"] / cost["of_tokens"]
        assert record["cost"][method]["acceptance"] == cost["kept"] / cost["drafted"]
        assert record["ensembling"][method]["by_task"]["say"]["ensembled"] == pytest.approx(
            record["cost"][method]["ensembled_per_token"]
        )
    assert "ensembled_per_token" not in record["cost"]["alone"]
    assert of_method(output, "alone")["examples"][0]["tokens"].keys() == {"text", "expert", "decided_by"}
