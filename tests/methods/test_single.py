import torch
from transformers import LogitsProcessor, LogitsProcessorList

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


class Penalties(LogitsProcessor):
    """OpenAI's formula, token by token, for transformers' own loop."""

    def __init__(self, presence: float, frequency: float, prompt_length: int):
        self.presence, self.frequency, self.prompt_length = presence, frequency, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        written = input_ids[0, self.prompt_length :].tolist()
        for token in set(written):
            scores[0, token] -= self.presence + self.frequency * written.count(token)
        return scores


def test_penalties_are_those_that_generate_would_apply() -> None:
    model = tiny.language_model("llama", seed=3)
    changed = 0
    for prompt in tiny.prompts(8, seed=43):
        answers = []
        for presence, frequency in ((0.0, 0.0), (1.5, 0.5), (-0.5, 2.0), (0.0, -1.0)):
            settings = GenerationSettings(max_new_tokens=24, presence_penalty=presence, frequency_penalty=frequency)
            (found,) = Engine(Single(model, "math")).generate([prompt], settings)
            processors = LogitsProcessorList([Penalties(presence, frequency, len(prompt))])
            ids = torch.tensor([prompt])
            output = model.generate(ids, max_new_tokens=24, do_sample=False, logits_processor=processors)
            assert found.token_ids == output[0, len(prompt) :].tolist()
            answers.append(found.token_ids)
        changed += answers[1] != answers[0]
    assert changed > 2, "penalties must have changed something"


def test_candidates_are_the_models_own_under_its_name() -> None:
    (answer,) = Engine(Single(tiny.language_model(), "math")).generate(
        [[10, 11]], GenerationSettings(max_new_tokens=3, logprobs=4, candidates=4)
    )
    assert [record.candidates for record in answer.trace] == [(("math", each.top_logprobs),) for each in answer.trace]


def test_a_router_alone_is_its_language_model() -> None:
    router = tiny.router("llama")
    (prompt,) = tiny.prompts(1, seed=42)
    (found,) = Engine(Single(router, "router")).generate([prompt], GenerationSettings(max_new_tokens=NEW))
    output = router.lm.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
    assert found.token_ids == output[0, len(prompt) :].tolist()
