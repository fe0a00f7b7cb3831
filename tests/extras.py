"""The wheel outside of the repository: alone, and with each extra alone, in a fresh environment, doing what it is for.

python tests/extras.py            # all of them; some minutes, network
python tests/extras.py eval moe   # these
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
CORE = "core"

# Nothing of it needs network. `import fusionroute` is to take under a second beyond torch and transformers.
# Transformers loads its classes when they are first asked for, which is its time and not ours.
QUICK = """
import time, torch, transformers
transformers.PreTrainedModel, transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.DynamicCache
began = time.perf_counter()
import fusionroute
bare = time.perf_counter() - began
for name in fusionroute.__all__:
    getattr(fusionroute, name)
seconds = time.perf_counter() - began
print(f"beyond torch and transformers: import fusionroute {bare:.3f} s, with all its public names {seconds:.2f} s")
assert seconds < 1, seconds
"""
ADAPTER = """
import peft
from fusionroute.engine.engine import Engine
from fusionroute.methods.single import Single
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute import GenerationSettings
lora = peft.get_peft_model(load_model("zoo/math"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
lora.peft_config["default"].base_model_name_or_path = "zoo/math"
lora.save_pretrained("adapter")
expert = load_model("adapter")
print(Engine(Single(expert, "math")).generate([[5, 6, 7]], GenerationSettings(max_new_tokens=4)))
"""
SERVED = """
import subprocess, sys, time, urllib.request
server = subprocess.Popen(["fusionroute", "serve", "safe.yaml", "--port", "8123"])
try:
    for _ in range(600):
        time.sleep(0.2)
        assert server.poll() is None, "the server has ended"
        try:
            print(urllib.request.urlopen("http://127.0.0.1:8123/v1/models").read()[:80])
            break
        except OSError:
            pass
    else:
        sys.exit("no answer")
finally:
    server.terminate()
assert server.wait(60) == 0
"""
TAKE = "fusionroute zoo take --output zoo"
RUNS: dict[str, tuple[str, ...]] = {
    CORE: (f"python -c '{QUICK}'", "fusionroute --help", "fusionroute env", TAKE,
           "fusionroute calibrate safe.yaml two.jsonl", "fusionroute demo --per-task 20 --test-count 4"),
    "peft": (TAKE, f"python -c '{ADAPTER}'"),
    "server": (TAKE, f"python -c '{SERVED}'"),
    "eval": (TAKE, "mkdir tasks", "cp my_task.yaml tasks", "fusionroute evaluate compare.yaml --output runs/mine"),
    "moe": ("python -c 'import sentence_transformers'", TAKE,
            "fusionroute zoo examples moe_kind --split test --count 8 > test.jsonl",
            "fusionroute roma record zoo/olmoe test.jsonl --output runs/before --prompt chat_template"),
    "docs": (f"NO_MKDOCS_2_WARNING=1 mkdocs build --strict --config-file {ROOT}/mkdocs.yml --site-dir $PWD/site",),
}  # fmt: skip


def check(extra: str, wheel: Path) -> None:
    """Raises `CalledProcessError` for the first command that fails."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        binaries = folder / "venv" / "bin"
        wanted = str(wheel) if extra == CORE else f"{wheel}[{extra}]"
        quiet = ("--quiet", "--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt"))
        subprocess.run([binaries / "pip", "install", *quiet, wanted], check=True)
        work = folder / "work"
        work.mkdir()
        for file in ("own_benchmark/my_task.yaml", "own_benchmark/compare.yaml", "own_benchmark/questions.jsonl"):
            (work / Path(file).name).write_bytes((EXAMPLES / file).read_bytes())
        settings = (EXAMPLES / "families" / "safe.yaml").read_text(encoding="utf-8")
        (work / "safe.yaml").write_text(settings + "drafter: byte_bpe\n", encoding="utf-8")
        (work / "two.jsonl").write_text('{"prompt": "Hello"}\n{"prompt": "there"}\n', encoding="utf-8")
        environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        for command in RUNS[extra]:
            print(f"  {command.splitlines()[0]}", flush=True)
            subprocess.run(command, shell=True, cwd=work, env=environment, check=True)


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", scratch, ROOT], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        for extra in names or RUNS:
            print(f"{extra}:", flush=True)
            check(extra, wheel)
            print(f"{extra}: works alone", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
