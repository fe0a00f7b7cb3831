"""What the plugin refuses, in one line each, and what it leaves alone."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vllm

import tiny_exported
from fusionroute import vllm_plugin

UNTESTED = """
import vllm
vllm.__version__ = "0.31.2"
from vllm.plugins import load_general_plugins
load_general_plugins()
from transformers import CONFIG_MAPPING
from vllm import ModelRegistry
assert "fusionroute" not in CONFIG_MAPPING
assert "FusionRouteForCausalLM" not in ModelRegistry.get_supported_archs()
assert "LlamaForCausalLM" in ModelRegistry.get_supported_archs()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_exported.exported(tiny_exported.team("gemma2"), tmp_path_factory.mktemp("whole"))


def test_this_version_is_one_of_those_that_work() -> None:
    assert vllm_plugin.unsupported(vllm.__version__) is None


def test_another_version_gets_one_line_and_serves_other_models() -> None:
    run = subprocess.run([sys.executable, "-c", UNTESTED], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    told = [line for line in (run.stdout + run.stderr).splitlines() if "fusionroute:" in line]
    assert len(told) == 1
    assert "vLLM 0.31.2 cannot serve exported teams, 0.32.x can" in told[0]
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("version", ["0.31.9", "0.320.1", "0.33.0", "1.0.0", "dev"])
def test_versions_that_were_not_tested(version: str) -> None:
    assert "0.32.x can" in str(vllm_plugin.unsupported(version))


def test_registering_twice_is_no_matter(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vllm.fusionroute"):
        vllm_plugin.register()
        vllm_plugin.register()
    assert not [record for record in caplog.records if record.name == "vllm.fusionroute"]


@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_a_half_written_folder(harm: str, folder: Path, tmp_path: Path, vllm_running: Callable[..., Any]) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = copy / "experts" / "v2.5" / "model.safetensors"
    size = weights.stat().st_size
    if harm == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    state = "is missing" if harm == "missing" else f"has 1000 of {size} bytes"
    with (
        pytest.raises(ValueError, match=rf"half-written: experts/v2.5/model.safetensors {state}; copy it again"),
        vllm_running(copy),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_format": "pt"}, "cannot be loaded as 'pt'.*--load-format auto or safetensors"),
        ({"load_format": "sharded_state"}, "cannot be loaded as 'sharded_state'"),
        ({"enable_lora": True}, "a team cannot take LoRA requests"),
        ({"pipeline_parallel_size": 4}, "the router has 3 layers, too few for 4 pipeline stages"),
        ({"hf_overrides": {"team": {"router": {}}}}, "experts: Field required"),
    ],
)
def test_what_a_team_cannot_do(
    options: dict[str, Any], message: str, folder: Path, vllm_running: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=message), vllm_running(folder, **options):
        pass
