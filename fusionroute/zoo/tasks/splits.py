"""Which split a prompt belongs to: a stable hash of its text decides, so no prompt can be in two."""

import hashlib

# Shares in percent. `experts` is what base and experts learn from, `train` and `preference` what routers learn from.
SHARES = {"experts": 60, "train": 20, "preference": 10, "test": 10}


def split_of(prompt: str) -> str:
    """The one split that may hold this prompt."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) % 100
    for name, share in SHARES.items():
        if bucket < share:
            return name
        bucket -= share
    raise AssertionError("the shares must add up to 100")
