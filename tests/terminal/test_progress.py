"""Bars where there is a terminal, lines where there is none."""

import pytest

from fusionroute.terminal.progress import RichProgress, duration
from tiny_console import console, shown


def test_progress_without_a_terminal_is_a_line_for_each_tenth() -> None:
    where = console(terminal=False)
    with RichProgress(where) as progress:
        progress.start("train", 20)
        for step in range(20):
            progress.advance(1, f"loss {20 - step}")
        progress.finish("trained")
        progress.finish("a line without a bar")
    lines = shown(where).splitlines()
    assert lines[:3] == ["train (20)", "  10 %  loss 19", "  20 %  loss 17"]
    assert lines[-2].startswith("✓ trained (")
    assert lines[-1] == "✓ a line without a bar"
    assert "\x1b" not in shown(where)


def test_an_error_gives_the_terminal_back() -> None:
    where = console(terminal=True)
    with pytest.raises(KeyboardInterrupt):
        _interrupt(RichProgress(where))
    hidden, visible = "\x1b[?25l", "\x1b[?25h"
    assert shown(where).rfind(visible) > shown(where).rfind(hidden) >= 0


def _interrupt(progress: RichProgress) -> None:
    with progress:
        progress.start("train", 3)
        progress.advance(1)
        raise KeyboardInterrupt


def test_progress_keeps_its_last_note() -> None:
    where = console(terminal=True)
    with RichProgress(where) as progress:
        progress.start("train", 3)
        progress.advance(1, "loss 0.5")
        progress.advance(1)
    assert "loss 0.5" in shown(where)
    assert "train" in shown(where)


@pytest.mark.parametrize(("seconds", "text"), [(8.24, "8.2 s"), (65, "1 min 05 s"), (3599.6, "60 min 00 s")])
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text
