"""The interpreter behind the sandbox: reads programs, forks once per program, reports which ones ran to their end.

It is run as a script and imports nothing of this package, so that it starts fast and a fork stays small.
"""

import gc
import json
import math
import os
import re
import resource
import select
import signal
import sys
from collections.abc import Iterable
from importlib import import_module

# What a program may import: harmless on its own, or harmless behind the guard. Everything else it would have to open.
_IMPORTABLE = """
abc array ast base64 binascii bisect builtins calendar cmath collections contextlib copy dataclasses datetime decimal
difflib doctest enum fractions functools hashlib heapq inspect io itertools json keyword logging math numbers operator
os pathlib pprint queue random re secrets statistics string struct sys textwrap threading time traceback types typing
unicodedata unittest uuid warnings zlib
"""
IMPORTABLE = tuple(_IMPORTABLE.split())
# What these import only when they are first used, which is too late behind the guard.
IMPORTED_LATE = {"datetime": ("_strptime",), "time": ("_strptime",)}
# What a child may still do once the guard is up; all else that Python reports, such as opening a file, is refused.
HARMLESS = {
    "compile",
    "exec",
    "object.__getattr__",
    "object.__setattr__",
    "object.__delattr__",
    "builtins.id",
    "sys._getframe",  # namedtuple and typing look for the module they are called from
    "sys._getframemodulename",
    "time.sleep",
}


def main() -> None:
    orders = json.load(sys.stdin)
    limits = orders["seconds"], orders["megabytes"]
    load_modules(orders["programs"])
    gc.freeze()  # a collection in a child would otherwise write to, and so copy, all that was loaded here
    json.dump([finishes(program, *limits) for program in orders["programs"]], sys.stdout)


def load_modules(programs: Iterable[str]) -> None:
    """Load here what the programs may import, so that a child finds it without touching a file.

    Only what their text names: programs that import nothing, and there are many, shall not wait for fifty modules.
    """
    words = set(re.findall(r"\w+", "\n".join(programs)))
    for name in IMPORTABLE:
        if name in words:
            for module in (name, *IMPORTED_LATE.get(name, ())):
                import_module(module)


def finishes(program: str, seconds: float, megabytes: int) -> bool:
    """Only the byte that a child writes after the program's last line counts; its exit status proves nothing."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _child(program, write_end, seconds, megabytes)
    os.close(write_end)
    ready, _, _ = select.select([read_end], [], [], seconds)
    finished = bool(ready) and os.read(read_end, 1) == b"."
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read_end)
    return finished


def _child(program: str, write_end: int, seconds: float, megabytes: int) -> None:
    """Never returns: the child leaves by `os._exit`, whatever the program does."""
    try:
        _limit(seconds, megabytes)
        _silence()
        code = compile(program, "answer", "exec")
        report = os.write
        sys.addaudithook(_guard)
        exec(code, {"__name__": "answer"})
        report(write_end, b".")
    finally:
        os._exit(0)


def _limit(seconds: float, megabytes: int) -> None:
    cpu, memory = math.ceil(seconds), megabytes * 2**20
    for limit, value in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _silence() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def _guard(event: str, _: tuple) -> None:
    if event not in HARMLESS:
        raise PermissionError(f"a program in the sandbox may not use {event}")


if __name__ == "__main__":
    main()
