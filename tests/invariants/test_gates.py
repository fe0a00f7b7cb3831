"""MoE gates overridden with the model's own weights leave it untouched, and leaving the block undoes any override."""

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import tiny
import tiny_moe
from fusionroute.models.gates import Gates, rows_of

IDS, MASK = tiny_moe.padded(tiny.prompts(3, seed=3, longest=9))
EVERY = [*tiny_moe.FAMILIES, *tiny_moe.OTHERS]


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def own_routing(gates: Gates, rows: Tensor | None = None) -> Tensor:
    with gates.reading() as tap:
        logits(gates.model)
    return tap.routing(rows)


@pytest.mark.parametrize("family", EVERY)
def test_own_weights_change_no_bit(family: str) -> None:
    gates = Gates(tiny_moe.mixture(family), "all")
    plain, last = logits(gates.model), rows_of(MASK)
    with gates.overriding(own_routing(gates)):
        assert torch.equal(logits(gates.model), plain)
    with gates.overriding(own_routing(gates, last), last):
        assert torch.equal(logits(gates.model), plain)
    with gates.overriding(tiny_moe.routing(len(last), gates.count), last) as tap:
        assert not torch.allclose(logits(gates.model), plain, atol=1e-2)
    assert len(tap.logits) == gates.count


@pytest.mark.parametrize("family", EVERY)
def test_after_the_block_nothing_is_left(family: str) -> None:
    gates = Gates(tiny_moe.mixture(family), 1)
    plain, before = logits(gates.model), hooks(gates.model)
    other = tiny_moe.routing(IDS.numel(), 1)
    with gates.reading(), gates.overriding(other):
        assert not torch.equal(logits(gates.model), plain)
    assert torch.equal(logits(gates.model), plain)
    assert hooks(gates.model) == before
    with pytest.raises(KeyError), gates.overriding(other), gates.reading():
        raise KeyError
    assert torch.equal(logits(gates.model), plain)
    assert hooks(gates.model) == before
    with gates.overriding(other):  # the exception has not left the model marked as overridden
        assert not torch.equal(logits(gates.model), plain)


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generating_with_own_weights_for_the_prompt(family: str, dtype: torch.dtype) -> None:
    gates = Gates(tiny_moe.mixture(family).to(dtype), 2)
    ids, mask = tiny_moe.padded(tiny.prompts(3, seed=3, longest=9), side="left")
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}

    def generate(**others: int) -> tuple[Tensor, Tensor]:
        written = gates.model.generate(ids, **{**options, **others}, output_logits=True)
        return written.sequences, torch.stack(written.logits)

    with gates.reading() as tap:
        generate(max_new_tokens=1)
    rows = rows_of(mask)
    plain = generate()
    with gates.overriding(tap.routing(rows).detach(), rows):
        assert all(map(torch.equal, generate(), plain))
    with gates.overriding(tap.routing().detach()):
        assert all(map(torch.equal, generate(), plain))
    with gates.overriding(tiny_moe.routing(3, 2), rows):
        assert not torch.equal(generate()[1], plain[1])
    assert all(map(torch.equal, generate(), plain))
