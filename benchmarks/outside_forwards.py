"""Where a step's time goes outside the models' forward passes: by a clock around them, and by function.

`ForwardClock` costs two readings of a clock a pass. `Profile` follows every call, which costs more than many of them
take, but stands still inside a forward pass: its shares compare functions, the clock says how much they are together.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

FORWARD = "forward passes of the models"
NOT_OUTSIDE = {FORWARD, "sys.setprofile"}  # the second is how a profile stands still


class ForwardClock:
    """Seconds inside forward passes of some models since it was made, or last reset."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.passes = 0

    @contextmanager
    def around(self, models: Iterable[nn.Module]) -> Iterator[None]:
        """Count passes of ``models`` in the block."""

        def begin(*_: Any) -> None:
            self._began = time.perf_counter()

        def end(*_: Any) -> None:
            self.seconds += time.perf_counter() - self._began
            self.passes += 1

        hooks = [hook for model in models for hook in _hooks(model, begin, end)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class Profile:
    """Seconds and calls of every function, its own without those it calls; forward passes are one line."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._stack: list[tuple[FrameType | None, str]] = []
        self._last = 0.0

    @contextmanager
    def around(self, models: Iterable[nn.Module]) -> Iterator[None]:
        """Follow what the block calls, but for what happens in forward passes of ``models``."""
        hooks = [hook for model in models for hook in _hooks(model, self._begin_forward, self._end_forward)]
        self._stack, self._last = [(None, "the benchmark")], time.perf_counter()
        sys.setprofile(self._follow)
        try:
            yield
        finally:
            sys.setprofile(None)
            for hook in hooks:
                hook.remove()

    def _follow(self, frame: FrameType, event: str, argument: Any) -> None:
        self._charge()
        if event == "call":
            self._enter(frame, _name(frame))
        elif event == "c_call":
            self._enter(frame, _builtin_name(argument))
        elif len(self._stack) > 1 and self._stack[-1][0] is frame:  # of a hook only its return is seen
            self._stack.pop()
        self._last = time.perf_counter()

    def _enter(self, frame: FrameType | None, name: str) -> None:
        self._stack.append((frame, name))
        self.calls[name] += 1

    def _charge(self) -> None:
        self.seconds[self._stack[-1][1]] += time.perf_counter() - self._last

    def _begin_forward(self, *_: Any) -> None:
        sys.setprofile(None)
        self._stack = [each for each in self._stack if not each[1].endswith("_begin_forward")]
        self._enter(None, FORWARD)
        self._last = time.perf_counter()

    def _end_forward(self, *_: Any) -> None:
        self._charge()
        self._stack.pop()
        self._last = time.perf_counter()
        sys.setprofile(self._follow)

    def table(self, count: int) -> list[dict[str, Any]]:
        """The functions with most time outside forward passes, with their shares of it; the rest as one line."""
        outside = {name: seconds for name, seconds in self.seconds.items() if name not in NOT_OUTSIDE}
        whole, found = sum(outside.values()), sorted(outside, key=outside.__getitem__, reverse=True)
        lines = [
            {"function": name, "share": outside[name] / whole, "calls": self.calls[name]} for name in found[:count]
        ]
        rest = found[count:]
        share = sum(outside[name] for name in rest) / whole
        return [*lines, {"function": f"{len(rest)} others", "share": share, "calls": sum(self.calls[n] for n in rest)}]


def _hooks(model: nn.Module, begin: Callable[..., None], end: Callable[..., None]) -> list[Any]:
    return [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]


def _name(frame: FrameType) -> str:
    """A function as ``engine/runner.py: Runner.read``; the last two parts of its file say enough."""
    code = frame.f_code
    return f"{'/'.join(Path(code.co_filename).parts[-2:])}: {code.co_qualname}"


def _builtin_name(function: Any) -> str:
    module = getattr(function, "__module__", None)
    return f"{module}.{function.__qualname__}" if module else function.__qualname__
