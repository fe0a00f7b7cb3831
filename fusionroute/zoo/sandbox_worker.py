"""The interpreter behind the sandbox: reads programs, forks once per program, reports which ones ran to their end.

It is run as a script and imports nothing of this package, so that it starts fast and a fork stays small.
"""

import collections
import functools
import itertools
import json
import math
import os
import re
import resource
import select
import signal
import string
import sys

# What a program may import; loaded here, so that a child finds them without touching a file.
LOADED = (collections, functools, itertools, math, re, string)
# What a child may still do once the guard is up; all else that Python reports, such as opening a file, is refused.
HARMLESS = {"compile", "exec", "object.__getattr__", "object.__setattr__", "object.__delattr__", "builtins.id"}


def main() -> None:
    orders = json.load(sys.stdin)
    limits = orders["seconds"], orders["megabytes"]
    json.dump([finishes(program, *limits) for program in orders["programs"]], sys.stdout)


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
        code = compile(program, "answer", "exec")
        _limit(seconds, megabytes)
        _silence()
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
