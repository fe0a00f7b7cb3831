"""FusionRoute (arXiv 2601.05106) as one model of vLLM.

Every model of the team reads every token: which expert is asked next is known only when the router has read, and vLLM
lays out its caches before that. So an expert is never behind; what is saved is the LM head of all but the chosen one.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_pp_group, get_tp_group
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.interfaces import SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix
from vllm.sequence import IntermediateTensors

from fusionroute.models.export_format import words
from fusionroute.ops.fusion import fuse
from fusionroute.vllm_plugin.config import FusionRouteConfig
from fusionroute.vllm_plugin.parts import build_part

HANDED_ON = "hidden_states"  # between the stages of a pipeline
PARTS = "parts"  # the router first, then the experts in the order of the route head


class FusionRouteForCausalLM(nn.Module, SupportsPP):
    """Router, route head and experts; the hidden states of all models travel side by side.

    Weights come from one folder for each model (`secondary_weights`, a name of vLLM's loader) and the route head from
    the top.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__()
        model_config = vllm_config.model_config
        config: FusionRouteConfig = model_config.hf_config
        team, configs = config.exported, config.parts
        names = words(len(team.experts))
        self.complement = config.complement
        self.parts = nn.ModuleDict(
            {
                word: build_part(vllm_config, each, word, maybe_prefix(prefix, f"{PARTS}.{word}"))
                for word, each in zip(names, configs, strict=True)
            }
        )
        self.widths = [each.hidden_size for each in configs]
        self.route_head = nn.Linear(self.widths[0], len(team.experts), bias=team.route_head_bias, dtype=torch.float32)
        # What the stages of a pipeline hand on: model, name and width of each tensor, side by side
        self.handed_on = [
            (word, name, tensor.shape[-1])
            for word, empty in self._empty(1, torch.float32, torch.device("meta")).items()
            for name, tensor in empty.tensors.items()
        ]
        self.secondary_weights = [
            DefaultModelLoader.Source(
                model_config.model, model_config.revision, subfolder=folder, prefix=f"{PARTS}.{word}."
            )
            for word, folder in zip(names, team.folders, strict=True)
        ]

    @property
    def router(self) -> Any:
        return self.parts[words(0)[0]]

    @property
    def experts(self) -> list[Any]:
        return list(self.parts.values())[1:]

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """A method that vLLM insists on and does not call, since each model embeds the tokens itself."""
        raise NotImplementedError("each model of a team has embeddings of its own; give it token ids")

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        """The last hidden states of all models, ``[tokens, sum of hidden sizes]``, the router's first.

        In a pipeline every stage holds its layers of each model, and hands on what each of them has so far.
        """
        if inputs_embeds is not None:
            raise ValueError("a team takes token ids, not embeddings: its models do not share any")
        before = self._apart(intermediate_tensors)
        outputs = {word: part(input_ids, positions, before.get(word)) for word, part in self.parts.items()}
        if get_pp_group().is_last_rank:
            return torch.cat(list(outputs.values()), dim=-1)
        return self._together(outputs)

    def make_empty_intermediate_tensors(
        self, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> IntermediateTensors:
        """What the first stage of a pipeline would send, empty."""
        return self._together(self._empty(batch_size, dtype, device))

    def _empty(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> dict[str, IntermediateTensors]:
        parts: Iterable[tuple[str, Any]] = self.parts.items()
        return {word: part.make_empty_intermediate_tensors(batch_size, dtype, device) for word, part in parts}

    def _together(self, outputs: Mapping[str, IntermediateTensors]) -> IntermediateTensors:
        """As one tensor: some ways of sending take a few at most."""
        return IntermediateTensors(
            {HANDED_ON: torch.cat([outputs[word].tensors[name] for word, name, _ in self.handed_on], dim=-1)}
        )

    def _apart(self, tensors: IntermediateTensors | None) -> dict[str, IntermediateTensors]:
        """What `_together` has joined, for each model; none on the first stage."""
        apart: dict[str, IntermediateTensors] = {}
        if tensors is not None:
            pieces = tensors.tensors[HANDED_ON].split([width for _, _, width in self.handed_on], dim=-1)
            for (word, name, _), piece in zip(self.handed_on, pieces, strict=True):
                apart.setdefault(word, IntermediateTensors({})).tensors[name] = piece.contiguous()
        return apart

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Eq. (1) for each row of what `forward` gave, float32 ``[rows, vocabulary]``; None where vLLM gathers none."""
        router_hidden, *expert_hidden = hidden_states.split(self.widths, dim=-1)
        chosen = self._choose(router_hidden)
        expert_logits = self._ask_experts(expert_hidden, chosen)
        if not self.complement:
            return expert_logits
        # Before the None below: with tensor parallelism every process must take part in every gathering
        router_logits = self.router.compute_logits(router_hidden.contiguous())
        if expert_logits is None or router_logits is None:
            return None
        return fuse(router_logits, expert_logits, normalise=False)

    def _choose(self, hidden: Tensor) -> Tensor:
        """The expert of each row, the same in every process of a tensor-parallel group."""
        chosen = self.route_head(hidden.float()).argmax(-1)
        group = get_tp_group()
        return group.broadcast(chosen) if group.world_size > 1 else chosen

    def _ask_experts(self, hidden: list[Tensor], chosen: Tensor) -> Tensor | None:
        """Logits of each row's expert; the LM head of each reads its rows alone."""
        order = chosen.argsort(stable=True)
        counts = chosen.bincount(minlength=len(hidden)).tolist()  # the only wait for the device
        ends = torch.tensor([0, *counts]).cumsum(0).tolist()
        asked = [
            expert.compute_logits(states[order[start:end]])
            for expert, states, (start, end) in zip(self.experts, hidden, pairwise(ends), strict=True)
            if end > start
        ]
        if any(logits is None for logits in asked):
            return None
        logits = torch.cat([each.float() for each in asked])
        return torch.empty_like(logits).index_copy_(0, order, logits)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Each model reads its own weights, as it would alone."""
        return AutoWeightsLoader(self).load_weights(weights)
