"""Models that do not fit are refused before their weights are read, in one line that says what to do."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

import tiny
import tiny_adapters
import tiny_ensemble
from fusionroute import Ensemble, Team
from fusionroute.errors import FusionRouteError, ModelsTooLargeError
from fusionroute.models import loading, size
from fusionroute.models.loading import ModelReference, load_model
from fusionroute.models.size import check_fit, weight_bytes

CPU = torch.device("cpu")


def saved(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **options: object) -> str:
    tiny.language_model(family).to(dtype).save_pretrained(folder, **options)
    return str(folder)


def bytes_of(model: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in model.parameters())


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    """A device with so many bytes free, and no weights read."""

    def to_have(free: int) -> None:
        monkeypatch.setattr(size, "free_bytes", lambda device: free)
        monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", _never)

    return to_have


def _never(*_: object, **__: object) -> None:
    raise AssertionError("weights were read")


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [(torch.float32, None), (torch.float16, None), (torch.bfloat16, None), (torch.float32, "bfloat16")],
)
def test_the_headers_say_what_the_loaded_model_holds(tmp_path: Path, family: str, stored, wanted) -> None:
    location = saved(tmp_path / "m", family, stored)
    model = load_model(location, dtype=wanted)
    told = weight_bytes(ModelReference(model=location), loading.resolve_dtype(wanted), CPU)
    assert told == bytes_of(model)


def test_a_checkpoint_in_several_files_is_counted_whole(tmp_path: Path) -> None:
    location = saved(tmp_path / "m", max_shard_size="20KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    assert weight_bytes(ModelReference(model=location), None, CPU) == bytes_of(tiny.language_model())


def test_nothing_is_said_of_what_cannot_be_read(tmp_path: Path, pretend) -> None:
    location = saved(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(b"version https://git-lfs")
    assert weight_bytes(ModelReference(model=location), None, CPU) is None
    weights.unlink()
    assert weight_bytes(ModelReference(model=location), None, CPU) is None
    pretend(10**9)
    check_fit({"a": ModelReference(model=location), "b": ModelReference(model=str(tmp_path / "nowhere"))})


def test_a_team_that_does_not_fit_is_refused_before_weights_are_read(tmp_path: Path, pretend) -> None:
    tiny.team().save_pretrained(tmp_path / "team", save_experts=True)
    pretend(2**18)
    with pytest.raises(ModelsTooLargeError) as caught:
        Team.from_pretrained(tmp_path / "team")
    message = str(caught.value)
    assert "\n" not in message
    assert isinstance(caught.value, FusionRouteError)
    assert isinstance(caught.value, MemoryError)
    for word in ("on cpu", "router 0.0001", "math", "code", "chat", "0.000244 GiB are free", "bfloat16", "use fewer"):
        assert word in message


def test_a_smaller_dtype_or_another_device_makes_it_fit(tmp_path: Path, pretend) -> None:
    tiny.team().save_pretrained(tmp_path / "team", save_experts=True)
    models = {name: ModelReference(model=str(tmp_path / "team" / "experts" / name)) for name in ("math", "code")}
    alone = bytes_of(tiny.language_model())
    pretend(2 * alone)
    check_fit(models)
    pretend(2 * alone - 1)
    with pytest.raises(ModelsTooLargeError):
        check_fit(models)
    check_fit(models, dtype="bfloat16")
    check_fit(models, devices={"code": "meta"})


def test_adapters_over_one_base_count_it_once(tmp_path: Path, pretend) -> None:
    base = tiny_adapters.save_base(tmp_path / "base")
    models = {
        name: ModelReference(model=str(tiny_adapters.save_adapter(tmp_path / name, base, seed)))
        for seed, name in enumerate("abc")
    }
    weights = bytes_of(tiny.language_model())
    own = (tmp_path / "a" / "adapter_model.safetensors").stat().st_size  # its header, too, is not much
    pretend(weights + 3 * own)
    check_fit(models)
    pretend(weights)
    with pytest.raises(ModelsTooLargeError):
        check_fit(models)


def test_an_ensemble_that_does_not_fit_is_refused(tmp_path: Path, pretend) -> None:
    path = tiny_ensemble.write_file(tmp_path, tiny_ensemble.save(tmp_path))
    pretend(2**16)
    with pytest.raises(ModelsTooLargeError, match=r"on cpu \(bytes .* GiB, pieces .* GiB, other .* GiB\) but"):
        Ensemble.from_file(path)


def test_what_is_loaded_already_takes_nothing_more(tmp_path: Path, pretend) -> None:
    reference = ModelReference(model=saved(tmp_path / "m"))
    loaded: loading.Loaded = {}
    load_model(reference, loaded=loaded)
    pretend(0)
    check_fit({"m": reference}, loaded=loaded)
    with pytest.raises(ModelsTooLargeError):
        check_fit({"m": reference})


def header(written: bytes) -> bytes:
    return len(written).to_bytes(8, "little") + written


MALFORMED = [
    b"",
    b"\x10\x00",
    (10**6).to_bytes(8, "little") + b'{"a":',
    header(b"[1]"),
    header(b"null"),
    header(b'{"a": 1}'),
    header(b'{"a": {}}'),
    header(b'{"a": {"dtype": "F32", "shape": 3, "data_offsets": [1]}}'),
    header(b'{"a": {"dtype": ["F32"], "shape": ["x"], "data_offsets": "no"}}'),
    header(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [NaN, Infinity]}}'),
    header(b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, NaN]}}'),
    header(b"[" * 10**5),
    header(b"\xff\xfe"),
]


@pytest.mark.parametrize("written", MALFORMED)
def test_a_malformed_file_is_taken_for_nothing(tmp_path: Path, pretend, written: bytes) -> None:
    base = tiny_adapters.save_base(tmp_path / "base")
    adapter = tiny_adapters.save_adapter(tmp_path / "adapter", base, 0)
    (adapter / "adapter_model.safetensors").write_bytes(written)
    broken = Path(saved(tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(written)
    pretend(bytes_of(tiny.language_model()))
    check_fit({"a": ModelReference(model=str(adapter)), "b": ModelReference(model=str(broken))})


@pytest.mark.parametrize("written", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "\x00"])
def test_a_malformed_index_is_taken_for_nothing(tmp_path: Path, pretend, written: str) -> None:
    broken = Path(saved(tmp_path / "broken", max_shard_size="20KB"))
    (broken / "model.safetensors.index.json").write_text(written)
    pretend(0)
    check_fit({"b": ModelReference(model=str(broken))})


class Hub:
    """What is asked of the hub, and its answer."""

    def __init__(self, answer: object):
        self.answer = answer
        self.asked: list[str] = []

    def model_info(self, repo_id: str, **_: object) -> object:
        self.asked.append(repo_id)
        if isinstance(self.answer, Exception):
            raise self.answer
        return SimpleNamespace(safetensors=self.answer)


def on_the_hub(monkeypatch: pytest.MonkeyPatch, answer: object) -> Hub:
    hub = Hub(answer)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "model_info", hub.model_info)
    return hub


def test_a_repository_of_the_hub_is_asked_for_once(pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = on_the_hub(monkeypatch, SimpleNamespace(parameters={"BF16": 1000, "I8": 7}))
    pretend(2 * 4 * 1000 + 2 * 7 - 1)
    models = {name: ModelReference(model="owner/one", dtype=name) for name in ("float32", "bfloat16")}
    check_fit(models)
    assert hub.asked == ["owner/one"]
    models["two"] = ModelReference(model="owner/two", dtype="float32")
    with pytest.raises(ModelsTooLargeError, match=r"two 3.73e-06 GiB\) but"):
        check_fit(models)
    assert hub.asked == ["owner/one", "owner/one", "owner/two"]


def test_nothing_is_said_where_the_hub_does_not_answer(tmp_path: Path, pretend, monkeypatch) -> None:
    hub = on_the_hub(monkeypatch, ConnectionError("no name found"))
    pretend(0)
    here = ModelReference(model=saved(tmp_path / "m"))
    check_fit({"here": here, "a": ModelReference(model="owner/a"), "b": ModelReference(model="owner/b")})
    assert hub.asked == ["owner/a"], "no second try, and none for the next"


def test_what_torch_keeps_of_an_accelerator_is_free_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("mem_get_info", (100, 500)), ("memory_reserved", 70), ("memory_allocated", 30)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert size.free_bytes(torch.device("cuda:0")) == 140


def test_types_that_are_kept_as_they_are_have_their_own_size(tmp_path: Path) -> None:
    folder = Path(saved(tmp_path / "m"))
    header = {
        "a": {"dtype": "I8", "shape": [10, 3], "data_offsets": [0, 30]},
        "b": {"dtype": "F32", "shape": [5], "data_offsets": [30, 50]},
        "c": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [50, 54]},
        "d": {"dtype": "BOOL", "shape": [7], "data_offsets": [54, 61]},
        "__metadata__": {"format": "pt"},
    }
    written = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(written).to_bytes(8, "little") + written)
    assert weight_bytes(ModelReference(model=str(folder)), torch.bfloat16, CPU) == 30 + 2 * 5 + 4 + 7
