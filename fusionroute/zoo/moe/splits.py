"""Which split a prompt belongs to: a stable hash of its text decides, so no prompt can be in two.

The experts' split is drawn with the words of courtesy, those of tuning without: most test questions have been taught
to the experts in other words of courtesy. What is tested is routing, whether a question reaches the experts that know
it, and not what experts generalise to.
"""

import hashlib

from fusionroute.zoo.moe.wordings import CLOSINGS, OPENINGS

# Shares in percent. `experts` is what the experts learn from, `router` the gates of the assembled model.
BUILT_FROM = {"experts": 50, "router": 10}
# The rest is for whoever tunes its routing. A question is in one of these whatever words of courtesy stand around it.
TUNED_ON = {"train": 50, "dev": 20, "test": 30}
SPLITS = (*BUILT_FROM, *TUNED_ON)


def split_of(prompt: str) -> str:
    """The one split that may hold this prompt."""
    return _drawn(BUILT_FROM, f"moe {prompt}") or _drawn(TUNED_ON, f"tuned {without_courtesy(prompt)}")


def without_courtesy(prompt: str) -> str:
    """What is asked and in which wording, without what is said before and after it."""
    opening = max((each for each in OPENINGS if prompt.startswith(each)), key=len)
    closing = max((each for each in CLOSINGS if prompt.endswith(each)), key=len)
    return prompt.removeprefix(opening).removesuffix(closing)


def _drawn(shares: dict[str, int], text: str) -> str:
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 100
    for name, share in shares.items():
        if bucket < share:
            return name
        bucket -= share
    return ""
