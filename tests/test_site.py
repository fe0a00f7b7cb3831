"""The site of all pages is built without a warning: no dead link, no page left out, references that exist."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_site_is_built_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    commands = (tmp_path / "reference" / "command_line" / "index.html").read_text(encoding="utf-8")
    assert "fusionroute roma sweep" in commands
    python = (tmp_path / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert 'id="fusionroute.team.Team.generate"' in python
    assert (tmp_path / "repository" / "benchmarks" / "results" / "serving.json").exists()
