import copy

import pytest
import torch
from torch import nn

from fusionroute.engine.runner import Runner
from fusionroute.models import linear
from fusionroute.models.linear import WORTHWHILE, OneDnnLinear, use_fast_linears
from tiny import language_model

pytestmark = pytest.mark.skipif(not linear._has_onednn(), reason="this machine has no oneDNN")


def layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(512, WORTHWHILE // 512, bias=bias)
    use_fast_linears(made)
    assert type(made) is OneDnnLinear
    return made


@pytest.fixture(params=[False, True], ids=["any processor", "Intel"])
def on_intel(request, monkeypatch) -> bool:
    monkeypatch.setattr(linear, "_is_intel", lambda: request.param)
    return request.param


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(512,), (1, 512), (3, 1, 512), (2, 7, 512)])
def test_equals_the_plain_layer_up_to_rounding(on_intel: bool, bias: bool, shape: tuple[int, ...]) -> None:
    fast, x = layer(bias), torch.randn(shape)
    with torch.inference_mode():
        expected = nn.functional.linear(
            x.double(), fast.weight.double(), None if fast.bias is None else fast.bias.double()
        )
        torch.testing.assert_close(fast(x).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_the_kernel_depends_on_processor_and_rows(on_intel: bool, rows: int) -> None:
    fast, x = layer(), torch.randn(rows, 512)
    with torch.inference_mode():
        plain = nn.functional.linear(x, fast.weight, fast.bias)
        by_onednn = torch.ops.mkldnn._linear_pointwise(x, fast.weight, fast.bias, "none", [], "")
        assert torch.equal(fast(x), plain if on_intel and rows <= 2 else by_onednn)


def test_reads_what_is_not_contiguous(on_intel: bool) -> None:
    fast = layer()
    with torch.inference_mode():
        x = torch.randn(2, 6, 1024)[:, -3:, ::2]
        torch.testing.assert_close(fast(x), nn.functional.linear(x, fast.weight, fast.bias), rtol=0, atol=1e-5)


def test_is_the_plain_layer_outside_inference() -> None:
    fast, x = layer(), torch.randn(5, 512, requires_grad=True)
    assert torch.equal(fast(x), nn.functional.linear(x, fast.weight, fast.bias))
    fast(x).sum().backward()
    assert x.grad is not None
    assert fast.weight.grad is not None
    with torch.no_grad():
        assert torch.equal(fast(x), nn.functional.linear(x, fast.weight, fast.bias))


def test_other_dtypes_go_the_plain_way() -> None:
    fast, x = layer().to(torch.bfloat16), torch.randn(5, 512, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(fast(x), nn.functional.linear(x, fast.weight, fast.bias))


def test_looks_and_is_saved_like_any_other() -> None:
    fast, plain = layer(), nn.Linear(512, WORTHWHILE // 512)
    assert repr(fast) == repr(plain)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    assert type(copy.deepcopy(fast)) is OneDnnLinear


def test_small_layers_and_other_kinds_stay() -> None:
    class Other(nn.Linear):
        pass

    layers = nn.ModuleList([nn.Linear(64, 64), Other(512, WORTHWHILE // 512)])
    use_fast_linears(layers)
    assert [type(each) for each in layers] == [nn.Linear, Other]


def test_a_runner_uses_them_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "WORTHWHILE", 1)
    model = language_model(seed=1)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        before = model(ids).logits
    Runner(model, "model")
    assert any(type(module) is OneDnnLinear for module in model.modules())
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-5)


def test_a_machine_without_onednn_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear.platform, "machine", lambda: "arm64")
    made = nn.Linear(512, WORTHWHILE // 512)
    use_fast_linears(made)
    assert type(made) is nn.Linear
