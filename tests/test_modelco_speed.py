"""The benchmark against modelco: its own arithmetic, its refusals; the real thing where it can be installed."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaForCausalLM

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "modelco_speed.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("modelco_speed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    bench.main()


def test_the_mean_of_logits_is_what_we_write(bench: ModuleType, tmp_path: Path) -> None:
    """Against the arithmetic of `LogitArithmetic`, written down here: no cache, the mean of the logits, its argmax."""
    places = bench.save_models(tmp_path, "tiny")
    models = [LlamaForCausalLM.from_pretrained(place, dtype=torch.float32).eval() for place in places]
    ids = torch.tensor([bench.prompt()])
    with torch.inference_mode():
        for _ in range(12):
            mean = torch.stack([model(ids).logits[:, -1] for model in models]).mean(0)
            ids = torch.cat([ids, mean.argmax(-1, keepdim=True)], 1)
    written, seconds = bench.Ours(places).complete(bench.prompt(), 12)
    assert written == ids[0, bench.PROMPT :].tolist()
    assert bench.EOS not in written
    assert seconds > 0


def test_models_are_the_same_in_either_precision(bench: ModuleType, tmp_path: Path) -> None:
    (place, _) = bench.save_models(tmp_path, "tiny")
    whole, half = (LlamaForCausalLM.from_pretrained(place, dtype=kind) for kind in (torch.float32, torch.bfloat16))
    for mine, other in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(mine, other.float())


def test_different_tokens_are_no_comparison(bench: ModuleType) -> None:
    bench.insist_equal([1, 2, 3], [1, 2, 3])
    with pytest.raises(SystemExit, match=r"equal up to token 1 of 3 \(modelco wrote 3\)"):
        bench.insist_equal([1, 2, 3], [1, 9, 3])
    with pytest.raises(SystemExit, match=r"equal up to token 2 of 3 \(modelco wrote 2\)"):
        bench.insist_equal([1, 2, 3], [1, 2])


def test_where_it_cannot_be_installed_nothing_is_written(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    output = tmp_path / "result.json"
    run(bench, monkeypatch, "--quick", "--output", str(output), "--environment", str(tmp_path / "environment"))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("skipped: cannot install modelco 1.1.2 (")
    assert "modelco==1.1.2" in last
    assert not output.exists()


def test_an_earlier_result_is_not_written_over(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"
    output.write_text("{}")
    with pytest.raises(SystemExit):
        run(bench, monkeypatch, "--output", str(output))
    assert "a file that exists needs --overwrite" in capsys.readouterr().err


@pytest.mark.slow
def test_the_comparison_runs_and_the_tokens_are_equal(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"
    run(bench, monkeypatch, "--quick", "--output", str(output))
    said = capsys.readouterr().out
    if not output.exists():
        pytest.skip(said.splitlines()[-1])
    found = json.loads(output.read_text())
    assert found["equal tokens"] == found["what"]["new tokens"] == 64
    assert found["versions"]["modelco"]["modelco"] == "1.1.2"
    assert found["versions"]["modelco"]["torch"] == torch.__version__
    assert found["time of modelco / of fusionroute"]["min"] > 0
    assert "| ratio (min to max of rounds) |" in bench.render(found)
    assert str(SCRIPT.parents[1]) not in output.read_text()
