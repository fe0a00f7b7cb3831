import torch

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.methods.single import Single

NEW = 10


def test_a_model_alone_is_its_own_generate() -> None:
    model = tiny.language_model("qwen3")
    (prompt,) = tiny.prompts(1, seed=41)
    (found,) = Engine(Single(model, "math")).generate([prompt], GenerationSettings(max_new_tokens=NEW))
    output = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
    assert found.token_ids == output[0, len(prompt) :].tolist()
    assert {record.expert for record in found.trace} == {"math"}


def test_a_router_alone_is_its_language_model() -> None:
    router = tiny.router("llama")
    (prompt,) = tiny.prompts(1, seed=42)
    (found,) = Engine(Single(router, "router")).generate([prompt], GenerationSettings(max_new_tokens=NEW))
    output = router.lm.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
    assert found.token_ids == output[0, len(prompt) :].tolist()
