"""The sandbox contains what small programs do by accident."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from fusionroute.evaluation import sandbox
from fusionroute.evaluation.sandbox import FATAL, outcomes, run_programs
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


# What a module does when it is used: much of it is imported, opened or reported only then.
USES = {
    "most_common": "from collections import Counter\nassert Counter('aab').most_common(1) == [('a', 2)]",
    "NamedTuple": "from typing import List, NamedTuple\nclass P(NamedTuple):\n    x: int\nassert P(1).x == 1",
    "namedtuple": "from collections import namedtuple, OrderedDict\nassert namedtuple('P', 'x y')(1, 2).y == 2",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nassert P(1) == P(1)",
    "annotations": "from __future__ import annotations\nfrom dataclasses import dataclass\nimport typing\n"
    "@dataclass\nclass P:\n    x: int\nassert typing.get_type_hints(P) == {'x': int}",
    "statistics": "import statistics\nassert statistics.mode([1, 1, 2]) == statistics.mean([0, 2])",
    "singledispatch": "from functools import singledispatch\n@singledispatch\ndef f(x):\n    return 0\n"
    "@f.register\ndef _(x: int):\n    return 1\nassert (f(1), f('')) == (1, 0)",
    "functools": "from functools import cached_property, lru_cache, reduce\nimport re\n"
    "assert re.sub(r'(?i)A', 'b', 'aA') == lru_cache(reduce)(lambda x, y: x + y, ('b', 'b'))",
    "array": "import array\nassert array.array('i', [1, 2])[1] == 2",
    "doctest": "def f():\n    '>>> f()\\n1'\n    return 1\nimport doctest\nassert tuple(doctest.testmod()) == (0, 1)",
    "doctest that fails": "'>>> 1 + 1\\n3'\nimport doctest\nassert tuple(doctest.testmod()) == (1, 1)",
    "unittest": "import unittest, io\nclass T(unittest.TestCase):\n"
    "    def test_a(self):\n        self.assertEqual(1, 1)\n"
    "tests = unittest.defaultTestLoader.loadTestsFromTestCase(T)\n"
    "assert unittest.TextTestRunner(stream=io.StringIO()).run(tests).testsRun == 1",
    "codecs": "import codecs\nassert '\\u20ac'.encode('cp1252') == b'\\x80' and codecs.encode('a', 'rot13') == 'n'",
    "codec without import": "assert str(b'\\xe4', 'iso-8859-1') == 'a\\\\xe4'.encode().decode('unicode_escape')[1:]",
    "unknown codec": "try:\n    'x'.encode('nonsense')\nexcept LookupError:\n    pass",
    "named character": "assert '\\N{BULLET}' == chr(8226)",
    "pickle": "import pickle, copy\nclass P:\n    x = 1\n"
    "assert pickle.loads(pickle.dumps(P())).x == copy.deepcopy(P()).x",
    "csv": "import csv, io\nassert list(csv.reader(io.StringIO('a,b'))) == [['a', 'b']]",
    "timeit": "import timeit\nassert timeit.timeit('1 + 1', number=10) >= 0",
    "weakref": "import weakref\nclass A: pass\na = A()\nweakref.finalize(a, print)\nassert weakref.ref(a)() is a",
    "locale": "import locale, errno\nassert locale.localeconv() and errno.ENOENT == 2",
    "logging": "import logging\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.exception('x')",
    "traceback": "import traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n"
    "    assert 'Zero' in traceback.format_exc()",
    "datetime": "import datetime\nassert datetime.datetime.strptime('2024-02-29', '%Y-%m-%d').day == 29",
    "time": "from time import sleep, strptime\nsleep(0)\nassert strptime('2024', '%Y').tm_year == 2024",
    "hashlib": "import hashlib, hmac\nassert hashlib.md5('x'.encode()).hexdigest().startswith('9dd4')\n"
    "assert hmac.new(b'k', b'm', 'sha256').hexdigest()",
    "random": "import random, secrets, uuid\nrandom.seed(1)\n"
    "assert random.sample(range(3), 3) and uuid.uuid4() and secrets.token_hex()",
    "heapq": "import heapq as hq, bisect, operator\nassert hq.nlargest(1, [1, 2]) == [operator.add(1, 1)]",
    "fractions": "from fractions import Fraction\nfrom decimal import *\nassert Fraction('0.5') == Decimal('0.5')",
    "sys": "import sys, json, copy, string, cmath, queue, textwrap, calendar\nsys.setrecursionlimit(5000)",
    "recursion": "def f(n):\n    return 0 if n == 0 else f(n - 1)\nassert f(900) == 0",
    "large numbers": "import sys\nsys.set_int_max_str_digits(0)\nassert len(str(int('1' * 20000))) == 20000",
    "warning at compile time": "s = '\\d'\nassert len(s) == 2",
    "enum": "from enum import Enum\nassert Enum('E', 'A B').A.value == 1",
    "argparse": "import argparse\np = argparse.ArgumentParser(prog='p')\np.add_argument('--x', type=int)\n"
    "assert p.parse_args(['--x', '3']).x == 3 and p.format_help()",
    "environ": "import os\nos.environ['X'] = '1'\nassert os.getenv('X') == '1' and os.path.join('a', 'b') == 'a/b'",
}


def test_common_modules_can_be_imported():
    assert run_programs([f"import {name}" for name in IMPORTABLE], seconds=3) == [True] * len(IMPORTABLE)


def test_what_benchmark_programs_do_works():
    found = dict(zip(USES, outcomes(list(USES.values()), seconds=3), strict=True))
    assert {name: what for name, what in found.items() if what != "passed"} == {}


@pytest.mark.parametrize("program", [USES["most_common"], USES["codec without import"], "import heapq, socket"])
def test_a_verdict_is_the_same_alone_and_among_others(program: str):
    """Whether a neighbour names the module that a program needs, or one that it may not have, changes nothing."""
    neighbours = ["import heapq, codecs, encodings.unicode_escape", "import socket, subprocess"]
    (alone,) = outcomes([program], seconds=3)
    assert outcomes([neighbours[0], program, neighbours[1], program], seconds=3)[1::2] == [alone, alone]


def test_what_became_of_a_program_is_told():
    expected = {
        "x = 1": "passed",
        "while True: pass": "timed out",
        "open('x')": "refused: a program in the sandbox may not use open",
        "import socket": "refused: a program in the sandbox may not import socket",
        "assert False, 'no'": "failed: AssertionError: no",
        "assert False": "failed: AssertionError",
        "import sys\nsys.exit(0)": "failed: SystemExit: 0",
        "def": "failed: SyntaxError: invalid syntax (answer, line 1)",
        "import os\nos._exit(0)": "failed: it left before its last line",
        "import os\nos.closerange(3, 99)\nwhile True: pass": "failed: it left before its last line",
        "import signal\nsignal.raise_signal(signal.SIGSEGV)": "failed: ended by SIGSEGV",
        "x = [0] * 10**9": "failed: MemoryError",
        "raise ValueError('x' * 10**6)": "failed: ValueError: " + "x" * 280,
        "import os\nos._exit = os.write = None\n1 / 0": "failed: ZeroDivisionError: division by zero",
    }
    assert dict(zip(expected, outcomes(list(expected), seconds=0.5), strict=True)) == expected


@pytest.mark.parametrize("word", ["b'.'", "b'passed'"])
def test_writing_to_every_file_descriptor_is_no_pass_and_no_harm(word: str):
    line = "import os\nfor fd in range(3, 12):\n    try:\n        {}\n    except OSError:\n        pass\n"
    write, flood = line.format(f"os.write(fd, {word})"), line.format("for _ in range(99): os.write(fd, b'x' * 10**5)")
    assert run_programs([write + "assert False", write, flood]) == [False, True, True]


def test_what_python_does_not_report_is_refused_too(tmp_path: Path):
    programs = [
        f"import os\nos.mknod({str(tmp_path / 'node')!r})",
        f"import posix\nposix.mkfifo({str(tmp_path / 'fifo')!r})",
        "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
        "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    ]
    refused = ("os.mknod", "os.mkfifo", "os.pidfd_open", "os.setpriority")
    assert outcomes(programs) == [f"refused: a program in the sandbox may not use {name}" for name in refused]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the way out that is tried here needs Linux")
def test_a_program_that_ends_the_interpreter_behind_the_sandbox_fails_alone():
    attack = (
        "import _imp, os, sys\ndef fresh(name):\n    module = _imp.create_builtin(sys.modules[name].__spec__)\n"
        "    _imp.exec_builtin(module)\n    return module\n"
        "fresh('_signal').pidfd_send_signal(fresh('posix').pidfd_open(os.getppid()), 9)"
    )
    assert outcomes(["x = 1", attack, "assert False"]) == ["passed", FATAL, "failed: AssertionError"]
    assert run_programs([attack]) == [False]


def test_a_fault_of_the_worker_itself_is_not_blamed_on_the_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sandbox, "WORKER", tmp_path / "nowhere.py")
    with pytest.raises(subprocess.CalledProcessError):
        run_programs(["x = 1"])


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
        "import sys\nsys.setprofile(print)",
    ]
    assert run_programs(programs, seconds=3) == [False] * len(programs)
    assert not target.exists()


def test_seconds_and_megabytes_are_options():
    sleepy, hungry = "import time\ntime.sleep(0.4)", "x = bytearray(300 * 2**20)"
    assert run_programs([sleepy, hungry], seconds=0.1, megabytes=256) == [False, False]
    assert run_programs([sleepy, hungry], seconds=3, megabytes=1024) == [True, True]
