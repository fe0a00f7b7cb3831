"""Runs the benchmarks, one after the other, and writes what came out into the pages that show it.

    python benchmarks/run.py                      # everything that this machine can measure: hours
    python benchmarks/run.py --only engine_speed  # some of it
    python benchmarks/run.py --quick              # every script at a tiny size: does it still run? writes nothing
    python benchmarks/run.py --table              # only the pages, from the committed results
    python benchmarks/run.py --list               # what there is

What cannot run here is skipped and says what it lacks. A script that fails does not stop the others; the exit code
tells. `rows.py` holds the tables of scripts and figures; `studies.py` what is measured of answers, and first, because
it trains what some scripts need: afterwards it says which figures came again.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from measuring import ROOT, described
from pages import write_pages
from rows import ROWS, SCRIPTS, Need, Script
from speed_table import RESULTS, unreadable
from studies import STUDIES, Study, agreement, kept

DONE, SKIPPED, FAILED = "done", "skipped", "FAILED"
WORKERS = 2  # of a quick run, in which times mean nothing
TIME_LIMIT = 300.0  # seconds of one script in a quick run
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Outcome:
    script: Script | Study
    state: str
    seconds: float = 0.0
    word: str = ""

    def __str__(self) -> str:
        time_taken = f"{self.seconds:.0f} s" if self.seconds else ""
        return "  ".join(
            each for each in (f"{self.state:<8}", f"{self.script.name:<14}", time_taken, self.word) if each
        )


def measure(scripts: Iterable[Script]) -> list[Outcome]:
    """The published measurement of each, over its committed result; the page follows every one of them."""
    outcomes = []
    for script in scripts:
        print(f"\n{script.name}: {' '.join(command(script, script.full, RESULTS / f'{script.name}.json')[1:])}")
        outcome = one(script, script.full, script.needs, RESULTS / f"{script.name}.json")
        print(outcome)
        if outcome.state == DONE:
            write_pages()
        outcomes.append(outcome)
    return outcomes


def study_again(studies: Iterable[Study]) -> list[Outcome]:
    """All commands of each, over its committed results; each ends with a word on what came out otherwise."""
    outcomes = []
    for study in studies:
        before, began = {name: kept(name) for name in study.results}, time.perf_counter()
        outcome = Outcome(study, DONE)
        for words in study.words():
            print(f"\n{study.name}: {' '.join(words[1:])}")
            code, _ = _watched(words)
            if code:
                outcome = Outcome(study, FAILED, word=f"exit code {code}")
                break
        outcomes.append(replace(outcome, seconds=time.perf_counter() - began))
        print(outcomes[-1])
        if outcome.state == DONE:
            write_pages()
            for name in study.results:
                print(f"{name}: {agreement(before[name], kept(name))}")
    return outcomes


def try_all(scripts: Sequence[Script]) -> list[Outcome]:
    """A tiny run of each, several at once on one thread each; every row must find its figure in what they write."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:

        def tried(script: Script) -> Outcome:
            outcome = one(script, script.quick, script.needs_quick, Path(folder) / f"{script.name}.json", quiet=True)
            print(outcome, flush=True)
            return outcome

        return list(pool.map(tried, scripts))


def one(script: Script, arguments: str, needs: Sequence[Need], output: Path, *, quiet: bool = False) -> Outcome:
    """Run one script in a process of its own; its last words are kept if it does not end well."""
    for need in needs:
        if not (ROOT / need.path).exists():
            return Outcome(script, SKIPPED, word=f"no {need.path}; {need.remedy} makes it")
    if not (ROOT / "benchmarks" / f"{script.name}.py").exists():
        return Outcome(script, FAILED, word=f"there is no benchmarks/{script.name}.py")
    began, before = time.perf_counter(), _written(output)
    try:
        code, said = (_tried if quiet else _watched)(command(script, arguments, output))
    except subprocess.TimeoutExpired:
        return Outcome(script, FAILED, time.perf_counter() - began, f"not done within {TIME_LIMIT:.0f} s")
    seconds = time.perf_counter() - began
    last = said.splitlines()[-1] if said else ""
    if last.startswith("skipped:"):
        return Outcome(script, SKIPPED, word=last.removeprefix("skipped: "))
    if code or _written(output) == before:
        words = said[-2000:] if quiet else last
        return Outcome(script, FAILED, seconds, f"exit code {code}\n{words}")
    if problems := list(unreadable(script.name, json.loads(output.read_text(encoding="utf-8")))):
        return Outcome(script, FAILED, seconds, "; ".join(problems))
    return Outcome(script, DONE, seconds)


def _watched(words: Sequence[str]) -> tuple[int, str]:
    """Exit code and what was said, shown while it is said: some take half an hour."""
    with subprocess.Popen(
        words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        said = b""
        while piece := process.stdout.read1():  # type: ignore[union-attr]
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            said += piece
        return process.wait(), said.decode(errors="replace").strip()


def _tried(words: Sequence[str]) -> tuple[int, str]:
    """The same on one thread, in silence and within a limit."""
    process = subprocess.run(
        words, cwd=ROOT, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, text=True, check=False, timeout=TIME_LIMIT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return process.returncode, process.stdout.strip()


def command(script: Script, arguments: str, output: Path) -> list[str]:
    """As one types it in the root, so that a result's record of it names no folder of this machine."""
    python = str(ROOT / script.python) if script.python else sys.executable
    where = output.relative_to(ROOT) if output.is_relative_to(ROOT) else output
    return [python, f"benchmarks/{script.name}.py", *shlex.split(arguments), "--output", str(where), "--overwrite"]


def _written(output: Path) -> float | None:
    return output.stat().st_mtime_ns if output.exists() else None


def listed(scripts: Iterable[Script]) -> str:
    lines = []
    for script in scripts:
        lines.append(f"{script.name}{' (only if named)' if script.is_on_request else ''}")
        lines += [
            f"    {row.what}{f'  [{row.target}]' if row.target else ''}" for row in ROWS if row.script == script.name
        ]
    return "\n".join(lines)


def main() -> int:
    parser = described(__doc__)
    names = [each.name for each in (*STUDIES, *SCRIPTS)]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="tiny sizes, nothing is written: does everything still run?")
    mode.add_argument("--table", action="store_true", help="write README and docs from the committed results")
    mode.add_argument("--list", action="store_true", help="scripts, their rows and targets")
    options = parser.parse_args()
    named = [script for script in SCRIPTS if not options.only or script.name in options.only]
    if options.list:
        print(listed(named))
        print("\n".join(f"{study.name} (answers, not times)" for study in STUDIES))
        return 0
    if options.table:
        changed = ", ".join(str(page.relative_to(ROOT)) for page in write_pages())
        print(f"written to {changed}" if changed else "every page says what the results say")
        return 0
    if options.quick:
        return _told(try_all(named))
    studies = [study for study in STUDIES if not options.only or study.name in options.only]
    return _told([*study_again(studies), *measure(_unasked_left_out(named, options))])


def _unasked_left_out(named: list[Script], options: argparse.Namespace) -> list[Script]:
    return [script for script in named if options.only or not script.is_on_request]


def _told(outcomes: Sequence[Outcome]) -> int:
    """A closing line, and the exit code: 1 if anything failed."""
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in (DONE, SKIPPED, FAILED)}
    print("\n" + ", ".join(f"{count} {state}" for state, count in counts.items() if count))
    return int(counts[FAILED] > 0)


if __name__ == "__main__":
    sys.exit(main())
