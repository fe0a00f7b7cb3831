"""The other side of `modelco_speed.py`: runs in an environment of its own, which has modelco and no fusionroute.

    python modelco_worker.py TOKENIZER MODEL MODEL ...

Loads the models once. Then, for every line of JSON it reads, {"ids": [...], "new": n}, it writes one:
{"ids": [...], "seconds": s}. What the libraries print goes to standard error.
"""

import json
import sys
import time
from importlib.metadata import version
from typing import Any

import torch
from model_collaboration.utils.logit_arithmetic import LogitArithmetic
from transformers import AutoTokenizer


def complete(peer: LogitArithmetic, ids: list[int], new: int) -> dict[str, Any]:
    """One greedy answer. Without inference mode modelco records every pass for gradients, which takes it longer."""
    prompt = torch.tensor([ids])
    start = time.perf_counter()
    with torch.inference_mode():
        written = peer.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=False
        )
    return {"seconds": time.perf_counter() - start, "ids": written[0, len(ids) :].tolist()}


def main() -> None:
    tokenizer, *models = sys.argv[1:]
    peer = LogitArithmetic(models, ["cpu"] * len(models), AutoTokenizer.from_pretrained(tokenizer))
    for model in peer.models:
        model.float()  # it loads bfloat16 whatever is stored; the stored weights are exact in both
    ready = {name: version(name) for name in ("modelco", "torch", "transformers")}
    print(json.dumps({"versions": ready, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(complete(peer, asked["ids"], asked["new"])), flush=True)


if __name__ == "__main__":
    main()
