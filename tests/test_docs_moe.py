"""docs/moe.md: its Python stands alone; what it says to try is the tutorial, see test_examples.py."""

import ast
import builtins
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "moe.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


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
