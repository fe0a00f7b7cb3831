"""Consoles whose control codes can be read."""

import io

from rich.console import Console


def console(*, terminal: bool, width: int = 100, **options: object) -> Console:
    system = "truecolor" if terminal else None
    return Console(file=io.StringIO(), force_terminal=terminal, color_system=system, width=width, **options)


def shown(where: Console) -> str:
    assert isinstance(where.file, io.StringIO)
    return where.file.getvalue()
