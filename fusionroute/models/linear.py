"""float32 products of few rows on a CPU by the faster of two kernels: torch's own may take twice as long as oneDNN's,
and so does decoding.
"""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WORTHWHILE = 2**19  # weights; below, what oneDNN does before it begins to multiply costs more than it saves
OWN_ON_INTEL = 2  # rows up to which torch's own product, MKL's there, is the faster one


class OneDnnLinear(nn.Linear):
    """An `nn.Linear` in all but the kernel with which it is read by a `Runner`.

    Anywhere else (training, transformers' own ``generate``), in other dtypes and on other devices it is the plain one.
    Results differ from the plain one's by rounding. The weights stay as they are, so nothing is held twice.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_inference_mode_enabled() or input.dtype != torch.float32 or not _is_plain(self.weight):
            return super().forward(input)
        if _is_intel() and input.numel() <= OWN_ON_INTEL * self.in_features:
            return super().forward(input)
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")

    def _get_name(self) -> str:
        return "Linear"


def use_fast_linears(model: nn.Module) -> None:
    """Let the large linear layers of ``model`` be `OneDnnLinear`, in place; on machines without oneDNN do nothing."""
    for module in model.modules() if _has_onednn() else ():
        if type(module) is nn.Linear and module.weight.numel() >= WORTHWHILE:
            module.__class__ = OneDnnLinear


def _has_onednn() -> bool:
    is_measured = platform.machine().lower() in ("x86_64", "amd64")  # what other processors gain is not known
    return is_measured and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def _is_intel() -> bool:
    """Whether this is a processor by Intel with Intel's own library; asked by name, so that runs can be repeated."""
    try:
        vendor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        vendor = platform.processor()
    return "GenuineIntel" in vendor and torch.backends.mkl.is_available()


def _is_plain(weight: Any) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.layout == torch.strided
