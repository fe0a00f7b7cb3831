"""FusionRoute (arXiv 2601.05106) as one model of vLLM.

Every model of the team reads every token: which expert is asked next is known only when the router has read, and vLLM
lays out its caches before that. So an expert is never behind; what is saved is the LM head of all but the chosen one.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_pp_group, get_tp_group
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.interfaces import SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix
from vllm.sequence import IntermediateTensors

from fusionroute.models.export.format import HEAD_FILE, WEIGHTS, words
from fusionroute.vllm_plugin.config import FusionRouteConfig
from fusionroute.vllm_plugin.parts import build_part

HANDED_ON = "hidden_states"  # between the stages of a pipeline
PARTS = "parts"  # the router first, then the experts in the order of the route head


class FusionRouteForCausalLM(nn.Module, SupportsPP):
    """Router, route head and experts; the hidden states of all models travel side by side.

    Weights come from one folder for each model (`secondary_weights`, a name of vLLM's loader) and the route head from
    the top.
    """

    allow_patterns_overrides = (HEAD_FILE,)  # a name of vLLM's loader: what it may read at the top

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
                model_config.model,
                model_config.revision,
                subfolder=folder,
                prefix=f"{PARTS}.{word}.",
                fall_back_to_pt=False,
                allow_patterns_overrides=[WEIGHTS],
            )
            for word, part_folder in zip(names, team.folders, strict=True)
            for folder in team.weight_folders(part_folder)
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
        parts: Iterable[tuple[str, Any]] = self.parts.items()
        outputs = ((word, part(input_ids, positions, before.get(word))) for word, part in parts)
        if get_pp_group().is_last_rank:
            return side_by_side((hidden for _, hidden in outputs), sum(self.widths))
        return self._together(outputs)

    def make_empty_intermediate_tensors(
        self, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> IntermediateTensors:
        """What the first stage of a pipeline would send, empty."""
        return self._together(self._empty(batch_size, dtype, device).items())

    def _empty(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> dict[str, IntermediateTensors]:
        parts: Iterable[tuple[str, Any]] = self.parts.items()
        return {word: part.make_empty_intermediate_tensors(batch_size, dtype, device) for word, part in parts}

    def _together(self, outputs: Iterable[tuple[str, IntermediateTensors]]) -> IntermediateTensors:
        """As one tensor: some ways of sending take a few at most."""
        names = {word: [name for owner, name, _ in self.handed_on if owner == word] for word in self.parts}
        pieces = (output.tensors[name] for word, output in outputs for name in names[word])
        return IntermediateTensors({HANDED_ON: side_by_side(pieces, sum(width for _, _, width in self.handed_on))})

    def _apart(self, tensors: IntermediateTensors | None) -> dict[str, IntermediateTensors]:
        """What `_together` has joined, for each model; none on the first stage."""
        apart: dict[str, IntermediateTensors] = {}
        if tensors is not None:
            pieces = tensors.tensors[HANDED_ON].split([width for _, _, width in self.handed_on], dim=-1)
            for (word, name, _), piece in zip(self.handed_on, pieces, strict=True):
                apart.setdefault(word, IntermediateTensors({})).tensors[name] = piece.contiguous()
        return apart

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Eq. (1) for each row of what `forward` gave, float32 ``[rows, vocabulary]``; None where vLLM gathers none.

        Logits are added, not log-probabilities: the two differ by a constant for each row and model, so that the
        softmax of the sum, and with it every choice and every log-probability that vLLM tells, is the same.
        """
        router_hidden, *expert_hidden = hidden_states.split(self.widths, dim=-1)
        asked = self._choose(router_hidden)
        total = _float(self.router.compute_logits(router_hidden.contiguous())) if self.complement else None
        for at, rows in asked:
            # With tensor parallelism every process takes part in every gathering, also one that is given nothing
            states = expert_hidden[at].contiguous() if rows is None else expert_hidden[at][rows]
            logits = _float(self.experts[at].compute_logits(states))
            if logits is not None:
                total = added(total, logits, rows, len(hidden_states))
        return total

    def _choose(self, hidden: Tensor) -> list[tuple[int, Tensor | None]]:
        """Every expert that is asked, and its rows, None being all of them; the same in every process of a group."""
        if len(self.experts) == 1:
            return [(0, None)]
        chosen = self.route_head(hidden.float()).argmax(-1)
        if (group := get_tp_group()).world_size > 1:
            chosen = group.broadcast(chosen)
        numbers = torch.arange(len(self.experts), device=chosen.device)
        counts = (chosen == numbers.unsqueeze(1)).sum(-1).tolist()  # the only wait for the device
        asked = [at for at, count in enumerate(counts) if count]
        if len(asked) == 1:
            return [(asked[0], None)]
        return list(zip(asked, chosen.argsort(stable=True).split([counts[at] for at in asked]), strict=True))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Each model reads its own weights, as it would alone."""
        return AutoWeightsLoader(self).load_weights(weights)


def side_by_side(pieces: Iterable[Tensor], width: int) -> Tensor:
    """Tensors ``[tokens, …]`` as one of ``width``, each copied before the next is asked for.

    The graphs that vLLM records of all models share one pool of memory, and what one of them gives is overwritten when
    the next is run.
    """
    joined, at = None, 0
    for piece in pieces:
        if joined is None:
            joined = piece.new_empty((*piece.shape[:-1], width))
        joined[..., at : at + piece.shape[-1]] = piece
        at += piece.shape[-1]
    assert joined is not None
    assert at == width, f"{at} of {width} columns"
    return joined


def added(total: Tensor | None, logits: Tensor, rows: Tensor | None, num_rows: int) -> Tensor:
    """``total``, or zeros if there is none yet, with ``logits`` added to some rows (None: to all), in place."""
    if total is None:
        if rows is None:
            return logits
        total = logits.new_zeros((num_rows, logits.shape[-1]))
    return total.add_(logits) if rows is None else total.index_add_(0, rows, logits)


def _float(logits: Tensor | None) -> Tensor | None:
    return None if logits is None else logits.float()
