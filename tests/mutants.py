"""Errors planted in the core one at a time: do the tests notice?

    python tests/mutants.py                # all of them, minutes; a table of which test caught which
    python tests/mutants.py "one row"      # those whose name has these words in it

Each changes a line or two of a copy of the package, and runs the tests of that part until the first one fails. A line
that is no longer there is an error: a mutant that is not planted says nothing.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIME_LIMIT = 600.0  # seconds; a mutant that hangs is noticed too
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    Mutant("Eq. (1): logits are added before they are normalised", "ops/fusion.py",
           "router_logits.float().log_softmax(-1) + expert", "router_logits.float() + expert", "ops/test_fusion.py"),
    Mutant("top-p: the token that reaches p is left out", "ops/sampling.py",
           "likelier >= p, NEVER", "likelier + probabilities >= p, NEVER", "ops/test_sampling.py"),
    Mutant("random numbers do not depend on the position", "ops/sampling.py",
           "counter=[0, 0, stream, position]", "counter=[0, 0, stream, 0]", "ops engine"),
    Mutant("Eq. (2): λ weighs the router's own loss too", "ops/losses.py",
           "self.lm / at_least_one(tokens) + weight", "weight * self.lm / at_least_one(tokens) + weight",
           "ops training/trainers"),
    Mutant("Eq. (3): chosen and rejected change places", "ops/losses.py",
           "answers[:, 0] - answers[:, 1]", "answers[:, 1] - answers[:, 0]", "ops training/trainers"),
    Mutant("labels: an answer's first token teaches nothing", "training/trainers/collator.py",
           'slice(example["prompt_length"] - 1, len(ids) - 1)', 'slice(example["prompt_length"], len(ids) - 1)',
           "training/trainers"),
    Mutant("cache: a cut is forgotten", "engine/cache.py",
           "self.lengths[handle] = min(self.lengths[handle], length)", "pass", "engine"),
    Mutant("cache: who moves into a gap is one position short", "engine/cache.py",
           "buffer[row, :, :length] = buffer[last, :, :length]",
           "buffer[row, :, : length - 1] = buffer[last, :, : length - 1]", "engine"),
    Mutant("cache: a former owner's row is not cleared", "engine/cache.py",
           "self._clear(row, 0)  # a former", "# a former", "engine invariants"),
    Mutant("scheduler: one row too many", "engine/scheduler.py",
           "rows <= self.max_batch", "rows <= self.max_batch + 1", "engine"),
    Mutant("prefixes: one token too many is taken", "engine/prefixes.py",
           "best = common_length(ids, known, end)", "best = min(end, common_length(ids, known, end) + 1)", "engine"),
    Mutant("long prompts: what was granted is charged twice", "engine/prefill.py",
           "budget.granted.update(pairs)", "pass", "engine/test_prefill.py"),
    Mutant("sequence: a rollback keeps the reason why it ended", "engine/sequence.py",
           "self.finish_reason = self.error = None\n        self._text = self._new_text()",
           "self._text = self._new_text()", "engine"),
    Mutant("SAFE: half of the votes is a majority", "methods/safe/verification.py",
           "strict=True)) > MAJORITY", "strict=True)) >= MAJORITY", "methods/safe"),
    Mutant("SAFE: one verifier that agrees is a consensus", "methods/safe/verification.py",
           "if all(agree):", "if any(agree):", "methods/safe"),
    Mutant("tokenizers: a character that one does not write is left out", "models/vocabulary/segmenter.py",
           "ids += found[:kept] + self._by_bytes(lost.encode())", "ids += found[:kept]", "models/vocabulary"),
    Mutant("RoMA: weights of neighbours do not sum to 1", "ops/manifold.py",
           "return similarity / total.where(total > 0, 1.0)", "return similarity", "ops moe"),
    Mutant("Holm: every p-value gets the factor of the last", "evaluation/statistics.py",
           "(len(p_values) - rank) * p_values[name]", "p_values[name]", "evaluation/test_statistics.py"),
    Mutant("output: a folder is replaced unasked", "output.py",
           "refuse_existing(path, overwrite=overwrite)\n        target", "target", "test_output.py"),
    Mutant("server: any key will do", "server/api/security.py",
           "if not sum(hmac.compare_digest(given, key) for key in self.keys):", "if not self.keys:", "server/api"),
    Mutant("server: who leaves goes on being written", "server/worker.py",
           "            _leave(ticket.offered.engine, strand.sequence)\n        if error is None:",
           "            pass\n        if error is None:", "server"),
)  # fmt: skip


def caught_by(mutant: Mutant, folder: Path) -> str:
    """The first test that fails with the mutant in place; empty if none does."""
    path = folder / "fusionroute" / mutant.file
    whole = path.read_text(encoding="utf-8")
    if whole.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.file} no longer has the line of {mutant.name!r}: {mutant.old!r}")
    path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return _first_failure([f"tests/{each}" for each in mutant.tests.split()], folder)
    finally:
        path.write_text(whole, encoding="utf-8")


def _first_failure(tests: list[str], folder: Path) -> str:
    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-n", "2"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return "no end"
    if run.returncode == 0:
        return ""
    found = FAILED.search(run.stdout)
    return found[1] if found else f"pytest ended with {run.returncode}"


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.name for word in words)]
    survived = 0
    with tempfile.TemporaryDirectory() as scratch:
        for part in ("fusionroute", "tests", "benchmarks", "docs", "configs", "examples"):
            shutil.copytree(ROOT / part, Path(scratch) / part)
        for file in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / file, scratch)
        print("| planted | in | caught by |\n| --- | --- | --- |")
        for mutant in chosen:
            caught = caught_by(mutant, Path(scratch))
            survived += not caught
            print(f"| {mutant.name} | `{mutant.file}` | {f'`{caught}`' if caught else '**nobody**'} |", flush=True)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
