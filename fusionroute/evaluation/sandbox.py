"""Run small programs that nobody has read: each in a child process with limits, all behind one interpreter.

It contains accidents, such as endless loops, hunger for memory, early exits, stray writes, sockets and processes. It is
no prison for an attacker, who finds ways around what Python reports to its guard.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

WORKER = Path(__file__).with_name("sandbox_worker.py")
PASSED = "passed"
FATAL = "failed: it ended the interpreter that ran it"


def run_programs(programs: Sequence[str], *, seconds: float = 1.0, megabytes: int = 256) -> list[bool]:
    """For each program, whether it ran to its end without an error within the limits.

    A program may import common modules of the standard library (`sandbox_worker.IMPORTABLE`) and may do arithmetic;
    opening files, starting processes and reaching the network are refused. ``seconds`` are those of the clock.
    """
    return [found == PASSED for found in outcomes(programs, seconds=seconds, megabytes=megabytes)]


def outcomes(programs: Sequence[str], *, seconds: float = 1.0, megabytes: int = 256) -> list[str]:
    """What became of each program of `run_programs`: ``passed``, ``timed out``, ``refused: …`` or ``failed: …``.

    Raises:
        subprocess.CalledProcessError: the interpreter behind the sandbox fails by itself.
    """
    if not programs:
        return []
    limits = {"seconds": seconds, "megabytes": megabytes}
    found = _ask(programs, limits)
    if found is not None:
        return found
    return [FATAL if alone is None else alone[0] for alone in (_ask([program], limits) for program in programs)]


def _ask(programs: Sequence[str], limits: dict[str, float]) -> list[str] | None:
    """None if a program got through to the interpreter that serves them all and ended it."""
    orders = json.dumps({"programs": list(programs), **limits})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-S", "-W", "ignore", str(WORKER)]
        worker = subprocess.run(command, input=orders, capture_output=True, text=True, cwd=folder, env={})
    if worker.returncode < 0:  # by a signal, which it does not send itself
        return None
    worker.check_returncode()
    return json.loads(worker.stdout)
