"""What the code runs on: versions and hardware, for bug reports and beside every result."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LIBRARIES = (
    "fusionroute",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "peft",
    "lm_eval",
    "sentence-transformers",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Versions of Python, of fusionroute and of the libraries its numbers depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}


def machine() -> dict[str, Any]:
    """Operating system, processors and accelerators with their memory."""
    import psutil
    import torch

    return {
        "os": platform.platform(),
        "cpus": os.cpu_count(),
        "memory": _gibibytes(psutil.virtual_memory().total),
        "torch_threads": torch.get_num_threads(),
        "devices": _devices(),
    }


def git_commit() -> str:
    """The commit of the working folder, for results; marked if there is code that it does not hold."""
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[dict[str, str]]:
    import torch

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(at) for at in range(torch.cuda.device_count())]
        return [
            {"device": f"cuda:{at}", "name": each.name, "memory": _gibibytes(each.total_memory)}
            for at, each in enumerate(found)
        ]
    accelerator = torch.accelerator.current_accelerator()
    return [{"device": accelerator.type}] if accelerator is not None else [{"device": "cpu"}]


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
