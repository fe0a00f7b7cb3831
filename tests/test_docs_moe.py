"""docs/moe.md: what it says to try is tried, on fewer questions; its Python stands alone."""

import ast
import builtins
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fusionroute.cli import app

TEXT = (Path(__file__).parents[1] / "docs" / "moe.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COUNT = 6


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def run(line: str) -> str:
    """A line of a shell: a command of ours, and perhaps a file that takes what it says."""
    words = shlex.split(line, comments=True)
    assert words[0] == "fusionroute"
    arrow = next((at for at, word in enumerate(words) if word in (">", ">>")), len(words))
    result: Any = CliRunner().invoke(app, words[1:arrow])
    assert result.exit_code == 0, (line, result.output)
    if arrow < len(words):
        with Path(words[arrow + 1]).open("a" if words[arrow] == ">>" else "w") as file:
            file.write(result.stdout)
    return str(result.stdout)


def test_what_to_try_on_the_bundled_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = section("Try it on the bundled mixture")
    (block,) = re.findall(r"```python\n(.*?)```", said, re.DOTALL)
    exec(compile(block, "docs/moe.md", "exec"), {})
    settings = Path("roma.yaml")
    settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text()) | {"device": "cpu", "batch_size": 64}))
    lines = [line.strip() for line in said.splitlines() if line.startswith("    fusionroute")]
    assert len(lines) == 12
    fewer = [re.sub(r"--(count|limit) \d+", rf"--\1 {COUNT}", line) for line in lines]
    shown = {line.split(" ")[2]: run(line) for line in fewer}
    assert len(Path("test.jsonl").read_text().splitlines()) == 2 * COUNT
    assert set(json.loads(Path("runs/zoo/sweep.json").read_text())) >= {"chosen", "points"}
    assert "questions were put as chat_template" in shown["evaluate"]
    assert "no bound on gates that are trained" in shown["oracle"]
    assert "<h1>Routing before and after</h1>" in Path("routing.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0] for block in BLOCKS])
def test_python_uses_no_name_that_it_does_not_make(block: str) -> None:
    tree = ast.parse(block)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            made |= {alias.asname or alias.name for alias in node.names}
    assert {node.id for node in names} <= made
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    exec(compile(ast.Module(imports, []), "docs/moe.md", "exec"), {})
