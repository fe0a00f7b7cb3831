"""For mkdocs: files of the repository that pages link to, such as results and configs, come along into the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(((?:\.\./)+(?:benchmarks|configs|examples)[^)#]*)\)")
FOLDER = "repository"  # of the site


def on_files(files: Files, config: Any) -> Files:
    """Add what pages of ``docs/`` link to outside of it."""
    for path in sorted({path for page in files.documentation_pages() for path in _linked(page).values()}):
        files.append(_shown(path, config))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let those links lead into the site."""
    up = "../" * page.file.src_uri.count("/")
    found = _linked(page.file)
    return LINK.sub(lambda match: f"]({up}{_uri(found[match[1]])})", markdown)


def _linked(page: File) -> dict[str, Path]:
    """Each link as it is written, and the file or folder it means; none of pages that are made here."""
    if page.generated_by is not None or page.abs_src_path is None:
        return {}
    source = Path(page.abs_src_path)
    return {link: (source.parent / link).resolve() for link in LINK.findall(source.read_text(encoding="utf-8"))}


def _uri(path: Path) -> str:
    inside = path.relative_to(ROOT).as_posix()
    return f"{FOLDER}/{inside}.md" if path.is_dir() else f"{FOLDER}/{inside}"


def _shown(path: Path, config: Any) -> File:
    """A file as it is; a folder as a page with the names of its files."""
    if not path.is_dir():
        return File.generated(config, _uri(path), abs_src_path=str(path))
    names = "\n".join(f"* `{each.name}`" for each in sorted(path.iterdir()) if each.is_file())
    return File.generated(config, _uri(path), content=f"# {path.relative_to(ROOT).as_posix()}\n\n{names}\n")
