"""Run small programs that nobody has read: each in a child process with limits, all behind one interpreter.

It contains accidents, such as endless loops, hunger for memory, early exits and stray writes. It is no prison for an
attacker.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

WORKER = Path(__file__).with_name("sandbox_worker.py")


def run_programs(programs: Sequence[str], *, seconds: float = 1.0, megabytes: int = 256) -> list[bool]:
    """For each program, whether it ran to its end without an error within the limits."""
    if not programs:
        return []
    orders = json.dumps({"programs": list(programs), "seconds": seconds, "megabytes": megabytes})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-S", str(WORKER)]
        worker = subprocess.run(command, input=orders, capture_output=True, text=True, cwd=folder, env={}, check=True)
    return json.loads(worker.stdout)
