"""The sandbox contains what small programs do by accident."""

import time
from pathlib import Path

from fusionroute.evaluation.sandbox import run_programs
from fusionroute.evaluation.sandbox_worker import IMPORTABLE


def test_programs_pass_or_fail_each_on_its_own():
    good, bad = ["assert 1 + 1 == 2", "x = 1"], ["assert 1 + 1 == 3", "1 / 0", "syntax error"]
    assert run_programs([*good, *bad, *good]) == [True] * 2 + [False] * 3 + [True] * 2


def test_nothing_to_run():
    assert run_programs([]) == []


def test_an_endless_loop_is_stopped():
    start = time.perf_counter()
    assert run_programs(["while True: pass", "x = 1"], seconds=0.3) == [False, True]
    assert time.perf_counter() - start < 5


def test_hunger_for_memory_is_refused():
    assert run_programs(["x = [0] * 10**9", "x = 'a' * 10**10", "x = 1"]) == [False, False, True]


def test_leaving_early_is_no_pass():
    exits = ["raise SystemExit(0)", "exit(0)", "import os\nos._exit(0)", "import sys\nsys.exit()"]
    assert run_programs([*exits, "x = 1"]) == [False] * len(exits) + [True]


def test_files_processes_and_sockets_are_out_of_reach(tmp_path: Path):
    target = tmp_path / "written"
    programs = [
        f"open({str(target)!r}, 'w').write('x')",
        "open('here', 'w').write('x')",
        f"import os\nos.open({str(target)!r}, os.O_CREAT | os.O_WRONLY)",
        f"import os\nos.mkdir({str(target)!r})",
        f"import os\nos.rmdir({str(tmp_path)!r})",
        "import os\nos.fork()",
        "import os\nos.kill(os.getppid(), 9)",
        "import subprocess\nsubprocess.run(['true'])",
        "import socket\nsocket.socket()",
    ]
    assert run_programs(programs) == [False] * len(programs)
    assert not target.exists()
    assert tmp_path.exists()


def test_printing_and_reading_input_do_not_disturb_the_report():
    assert run_programs(["print('[true, true]' * 1000)", "import math\nassert math.sqrt(4) == 2"]) == [True, True]
    assert run_programs(["input()"]) == [False]


def test_common_modules_can_be_imported():
    assert run_programs([f"import {name}" for name in IMPORTABLE], seconds=3) == [True] * len(IMPORTABLE)


def test_what_benchmark_programs_do_works():
    programs = [
        "from typing import List, NamedTuple\nclass P(NamedTuple):\n    x: int\nassert P(1).x == 1",
        "from collections import namedtuple, OrderedDict\nassert namedtuple('P', 'x y')(1, 2).y == 2",
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass P:\n    x: int\nassert P(1) == P(1)",
        "import datetime\nassert datetime.datetime.strptime('2024-02-29', '%Y-%m-%d').day == 29",
        "from time import sleep, strptime\nsleep(0)\nassert strptime('2024', '%Y').tm_year == 2024",
        "import hashlib\nassert hashlib.md5('x'.encode()).hexdigest().startswith('9dd4')",
        "import random\nrandom.seed(1)\nassert random.sample(range(3), 3)",
        "import heapq as hq, bisect, operator, statistics\nassert hq.nlargest(1, [1, 2]) == [statistics.mean([1, 3])]",
        "from fractions import Fraction\nfrom decimal import *\nassert Fraction('0.5') == Decimal('0.5')",
        "import sys, json, copy, string, cmath, queue, array, textwrap, calendar\nsys.setrecursionlimit(5000)",
        "def f(n):\n    return 0 if n == 0 else f(n - 1)\nassert f(900) == 0",
        "from functools import lru_cache, reduce\nimport re\nassert re.sub(r'(?i)A', 'b', 'aA') == 'bb'",
        "s = '\\d'\nassert len(s) == 2",  # a warning at compile time
        "from enum import Enum\nassert Enum('E', 'A B').A.value == 1",
    ]
    for program in programs:  # one at a time: a module that a neighbour names is loaded for all
        assert run_programs([program], seconds=3) == [True], program


def test_what_one_program_does_to_a_module_does_not_reach_the_next():
    assert run_programs(["import math\nmath.pi = 3", "import math\nassert math.pi > 3.1"]) == [True, True]


def test_harmless_modules_open_no_way_out(tmp_path: Path):
    target = tmp_path / "written"
    programs = [
        f"import pathlib\npathlib.Path({str(target)!r}).write_text('x')",
        f"import pathlib\npathlib.Path({str(target)!r}).touch()",
        f"import io\nio.open({str(target)!r}, 'w')",
        f"import logging\nlogging.basicConfig(filename={str(target)!r})",
        "import ctypes",
        "import gc\ngc.get_objects()",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9, 9))",
        "import sys\nsys.settrace(print)",
    ]
    assert run_programs(programs, seconds=3) == [False] * len(programs)
    assert not target.exists()


def test_seconds_and_megabytes_are_options():
    sleepy, hungry = "import time\ntime.sleep(0.4)", "x = bytearray(300 * 2**20)"
    assert run_programs([sleepy, hungry], seconds=0.1, megabytes=256) == [False, False]
    assert run_programs([sleepy, hungry], seconds=3, megabytes=1024) == [True, True]
