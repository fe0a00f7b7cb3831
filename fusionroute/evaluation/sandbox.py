"""Run small programs that nobody has read: each in a child process with limits, all behind one interpreter.

It contains accidents, such as endless loops, hunger for memory, early exits, stray writes, sockets and processes. It is
no prison for an attacker.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

WORKER = Path(__file__).with_name("sandbox_worker.py")


def run_programs(programs: Sequence[str], *, seconds: float = 1.0, megabytes: int = 256) -> list[bool]:
    """For each program, whether it ran to its end without an error within the limits.

    A program may import common modules of the standard library (`sandbox_worker.IMPORTABLE`) and may do arithmetic; it
    may not open files, start processes or reach the network. ``seconds`` are those of the clock.
    """
    if not programs:
        return []
    orders = json.dumps({"programs": list(programs), "seconds": seconds, "megabytes": megabytes})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-S", "-W", "ignore", str(WORKER)]
        worker = subprocess.run(command, input=orders, capture_output=True, text=True, cwd=folder, env={}, check=True)
    return json.loads(worker.stdout)
