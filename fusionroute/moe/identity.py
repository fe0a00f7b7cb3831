"""Which live module numbers came from, by its weights. (`models.fingerprint` knows models by their files.)"""

import hashlib

import torch
from torch import nn

SAMPLES = 4096  # of each tensor: training moves nearly every weight, and hashing 14 GB would take a minute


@torch.no_grad()
def weights_hash(module: nn.Module) -> str:
    """Of the names, shapes, dtypes and evenly spread values of all its tensors. Where they lie does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        spread = flat[:: max(1, -(-len(flat) // SAMPLES))].contiguous().cpu()
        digest.update(spread.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
