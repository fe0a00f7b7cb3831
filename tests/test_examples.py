"""Every titled block of a tutorial or how-to is a file in ``examples/`` that runs, in the order of the page."""

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.models.ensemble import EnsembleSettings
from fusionroute.moe.roma.settings import RoMASettings
from fusionroute.training.settings import TrainSettings
from served import Server, serving_clients

ROOT = Path(__file__).parents[1]
PAGES = [page for room in ("tutorials", "how-to") for page in sorted((ROOT / "docs" / room).glob("*.md"))]
PAGES = [page for page in PAGES if (ROOT / "examples" / page.stem).exists()]  # others have nothing to run
BLOCK = re.compile(r"^```\w+ title=\"examples/([^\"]+)\"\n(.*?)^```$", re.MULTILINE | re.DOTALL)
READERS = {"team": TrainSettings, "compare": CompareSettings, "safe": EnsembleSettings, "roma": RoMASettings}
SETTINGS = [path for path in sorted((ROOT / "examples").glob("*/*.yaml")) if path.stem != "my_task"]  # lm-eval's


def blocks(page: Path) -> dict[str, str]:
    return dict(BLOCK.findall(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_are_the_files_and_no_file_is_left_out(page: Path) -> None:
    folder = ROOT / "examples" / page.stem
    files = {f"{page.stem}/{path.name}": path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert blocks(page) == files


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_file_of_settings_is_read(path: Path) -> None:
    READERS[path.stem.removeprefix("real_")].parse(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_from_nothing_to_its_result(page: Path, tmp_path: Path) -> None:
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": beside, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    port = serving_clients.free_port()
    with ExitStack() as servers:
        for name, text in blocks(page).items():
            path = tmp_path / Path(name).name
            path.write_text(text.replace("8000", str(port)), encoding="utf-8")
            command = {".sh": ["sh", "-e"], ".py": [sys.executable]}.get(path.suffix)
            if path.name.endswith("_serve.sh"):
                process = subprocess.Popen(
                    ["sh", "-e", "-c", f"exec {text.replace('8000', str(port))}"], cwd=tmp_path, env=environment
                )
                servers.enter_context(serving_clients.stopped_in_the_end(Server(port, process)))
            elif command:
                run = subprocess.run(
                    [*command, path.name], cwd=tmp_path, env=environment, capture_output=True, text=True
                )
                assert run.returncode == 0, f"{name}: {run.stdout[-2000:]}{run.stderr[-2000:]}"
