"""What RoMA writes is a normal checkpoint: vLLM answers from it as transformers does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from vllm import SamplingParams

import tiny
import tiny_roma
from fusionroute.moe.roma.router_delta import BaseFiles, write_tuned

# Heads of 32: the kernel of vLLM for CPUs has none of the 24 of the mixtures in the zoo
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32}
NEW = 12


def tuned(base: Path, folder: Path) -> Path:
    """A mixture with other routers, written by what ``fusionroute roma`` writes with."""
    weights = load_file(base / "model.safetensors")
    gates = {name: weight for name, weight in weights.items() if name.endswith("mlp.gate.weight")}
    assert gates
    torch.manual_seed(0)
    return write_tuned(BaseFiles(str(base)), {name: torch.randn_like(gate) for name, gate in gates.items()}, folder)


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe"])
def test_a_tuned_mixture_in_vllm(family: str, tmp_path: Path, vllm_running: Callable[..., Any]) -> None:
    base = Path(tiny_roma.save_model(tmp_path / "base", family, **SIZES))
    folder, prompts = tuned(base, tmp_path / "tuned"), tiny.prompts(8)
    expected = greedy(folder, prompts)
    assert expected != greedy(base, prompts), "the routers make no difference"
    parameters = SamplingParams(temperature=0, max_tokens=NEW, logprobs=0, ignore_eos=True)
    with vllm_running(folder, generation_config="vllm") as llm:
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], parameters, use_tqdm=False)
    for output, (ids, log_probabilities) in zip(outputs, expected, strict=True):
        found = output.outputs[0]
        assert list(found.token_ids) == ids
        theirs = [step[token].logprob for token, step in zip(found.token_ids, found.logprobs, strict=True)]
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(log_probabilities), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def greedy(folder: Path, prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    """Token ids and their log-probabilities, with no cache and no batch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [_continued(model, prompt) for prompt in prompts]


def _continued(model: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    ids, values = list(prompt), []
    for _ in range(NEW):
        last = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(last.argmax()))
        values.append(float(last.max()))
    return ids[len(prompt) :], values
