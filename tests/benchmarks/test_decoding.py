"""What the speed benchmarks count: bytes by hand, time outside forward passes, the same tokens as `generate`."""

import time

import bandwidth
import outside_forwards
import pytest
import torch
from decoding import Ours, Theirs, random_prompts
from engine_speed import build, team
from torch import nn
from transformers import LlamaForCausalLM

import tiny
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.single import Single


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny.language_model(seed=0, eos_token_id=None)


def test_our_clock_covers_all_tokens_but_the_first(model: LlamaForCausalLM) -> None:
    prompts = random_prompts(2, 5, 50)
    ours, theirs = Ours(lambda: Single(model, "one"), prompts, 6), Theirs(model, prompts, 6)
    began = time.perf_counter()
    each = ours()
    assert 0 < 5 * each < time.perf_counter() - began
    assert 0 < theirs() < 10
    (runner,) = ours.runners
    assert runner.tokens_read == 2 * (5 + 5), "prompts, and every token but the last"
    assert ours.cache_bytes == runner.cache.nbytes > 0


def test_restless_teams_keep_one_trace_however_many_experts() -> None:
    router_lm, experts = build("tiny", 3, torch.float32)
    traces = []
    for count in (2, 3):
        made = team(router_lm, experts[:count], "restless", reachable=2)
        ours = Ours(lambda made=made: FusionRoute(made), random_prompts(1, 4, 100), 12, is_sampled=True)
        ours()
        traces.append(ours.traces)
    assert traces[0] == traces[1]


def test_bytes_of_a_step_are_those_of_the_weights_it_reads(model: LlamaForCausalLM) -> None:
    config = model.config
    per_layer = sum(weight.nbytes for weight in model.model.layers[0].parameters())
    read = config.num_hidden_layers * per_layer + model.lm_head.weight.nbytes + 4 * config.hidden_size  # the last norm
    assert bandwidth.weight_bytes(model) == read + 4 * config.hidden_size * (not config.tie_word_embeddings)
    per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    # four tokens: the steps behind the first read the prompt and 1, 2, 3 of them
    assert bandwidth.cache_bytes(model, 4) == per_position * (bandwidth.PROMPT + 2)


def test_every_kernel_reads_the_whole_buffer() -> None:
    found, again = bandwidth.bandwidth(2**22, repeats=1)
    assert len(found) == 6
    assert all(speed > 1e7 for speed in found.values())
    assert again() > 1e7


class Slow(nn.Module):
    def forward(self, seconds: float) -> None:
        self.inner(seconds)

    def inner(self, seconds: float) -> None:
        time.sleep(seconds)


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_the_clock_counts_forward_passes_alone() -> None:
    slow, clock = Slow(), outside_forwards.ForwardClock()
    with clock.around([slow]):
        slow(0.02)
        busy(0.02)
        slow(0.02)
    slow(0.02)
    assert clock.passes == 2
    assert 0.04 <= clock.seconds < 0.06


def test_a_profile_names_who_took_the_time_and_not_what_a_forward_pass_called() -> None:
    slow, profile = Slow(), outside_forwards.Profile()
    with profile.around([slow]):
        busy(0.15)
        slow(0.03)
        busy(0.15)
    lines = profile.table(50)
    names = [line["function"] for line in lines]
    assert not any("Slow.inner" in name or "sleep" in name for name in names)
    assert profile.calls[outside_forwards.FORWARD] == 1
    assert profile.seconds[outside_forwards.FORWARD] >= 0.03
    # of the loop and the clock that it reads
    mine = [line for line in lines if line["function"].endswith(": busy") or "perf_counter" in line["function"]]
    assert sum(line["share"] for line in mine) > 0.8
    assert sum(line["share"] for line in lines) == pytest.approx(1)
