"""The GPU benchmark without a GPU: it refuses in one line, and its whole logic runs on a CPU at a tiny size."""

import argparse
import json
import sys
from pathlib import Path

import gpu
import pytest
import torch


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    gpu.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_device_it_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^skipped: no CUDA device here; [^\n]*$"):
        run(monkeypatch, "--output", str(tmp_path / "gpu.json"))
    assert not (tmp_path / "gpu.json").exists()


def test_models_that_do_not_fit_are_refused_before_they_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (24 * 2**30, 24 * 2**30))
    options = argparse.Namespace(device="cuda", size="8b", experts=3)
    with pytest.raises(SystemExit, match="3 experts and a router need 60 GiB of which 24 are free; lower --experts"):
        gpu.refuse_without_device(argparse.ArgumentParser(), options)


def test_the_whole_runs_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "gpu.json"
    arguments = ("--size", "tiny", "--device", "cpu", "--new", "4", "--rounds", "1", "--batch", "3", "--experts", "2")
    run(monkeypatch, *arguments, "--output", str(output))
    found = json.loads(output.read_text())
    assert found["3 at once"]["tokens/s"]["steady"] > 0
    assert found["tokens/s of the batch / of one"]["restless"]["median"] > 0
    assert "| 3 at once, restless |" in capsys.readouterr().out
