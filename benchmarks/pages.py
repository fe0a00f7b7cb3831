"""Pages with tables from committed results: what stands between their markers is written here. It measures nothing.

``<!-- begin: NAME -->`` takes all that ``NAME.py`` renders of ``results/NAME.json``, ``<!-- begin: NAME 2 -->`` the
second table of it.
"""

import importlib
import re
from pathlib import Path

from measuring import ROOT
from speed_table import MISSING, RESULTS, headline, results_of, rows_table, sources

from fusionroute.output import write_text

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- begin: (\w+)(?: (\d+))? -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURES = {"scaling": "images/scaling.svg"}  # beside the page
OF_ROWS = {"rows": rows_table, "sources": sources, "headline": headline}
RENDERERS = {"zoo_roma_ablation": ("zoo_roma", "render_ablation")}  # of results that no script is named after


def block(name: str, part: int | None = None, folder: Path = RESULTS) -> str:
    """What stands between the markers of that name."""
    if name in OF_ROWS:
        return OF_ROWS[name](folder)
    results = results_of(name, folder)
    if results is None:
        return f"*{MISSING}*"
    module, function = RENDERERS.get(name, (name, "render"))
    text = str(getattr(importlib.import_module(module), function)(results))
    if part is not None:
        return _tables(text)[part - 1]
    return f"![{name}]({PICTURES[name]})\n\n{text}" if name in PICTURES else text


def _tables(text: str) -> list[str]:
    return [each for each in re.split(r"\n\s*\n", text) if each.startswith("|")]


def rendered(page: str, folder: Path = RESULTS) -> str:
    """The page with every block as the results are now."""
    return BLOCK.sub(
        lambda found: f"{found[1]}{block(found[2], int(found[3]) if found[3] else None, folder)}\n{found[4]}", page
    )


def write_pages() -> list[Path]:
    """Returns those that have changed."""
    changed = []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        if (after := rendered(before)) != before:
            write_text(page, after)
            changed.append(page)
    return changed
