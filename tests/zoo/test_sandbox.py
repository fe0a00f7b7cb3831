"""The sandbox contains what small programs do by accident."""

import time
from pathlib import Path

from fusionroute.zoo.sandbox import run_programs


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
