"""The router: a causal LM with one linear map from its final hidden state to a weight per expert (spec, section 3)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from fusionroute.errors import CheckpointError, SettingsError
from fusionroute.models.loading import Dtype, Loaded, ModelReference, as_reference, load_model, save_model

ROUTE_HEAD_FILE = "route_head.safetensors"


@dataclass
class RouterOutput(ModelOutput):
    """One forward pass.

    Attributes:
        logits: of the next token, ``[batch, positions, vocabulary]``.
        route_logits: W h, ``[batch, positions, experts]``, float32.
    """

    logits: Tensor | None = None
    route_logits: Tensor | None = None


class Router(nn.Module):
    """π_θ and w = ⟨W, h⟩ from a single forward pass over the same prefix.

    Args:
        lm: any transformers causal LM, or one with an adapter (see `add_lora`); it is trained with the head, an adapter
            instead of its base.
        num_experts: n, at least 1.
        bias: the paper prints w = ⟨W, h⟩, so off by default.

    Routing weights are softmax(W h), computed in float32 whatever the LM's dtype.
    """

    def __init__(self, lm: PreTrainedModel, num_experts: int, *, bias: bool = False):
        super().__init__()
        if num_experts < 1:
            raise SettingsError(f"a router needs at least one expert; got num_experts={num_experts}")
        self.lm = lm
        text_config = lm.config.get_text_config()
        self.route_head = nn.Linear(text_config.hidden_size, num_experts, bias=bias, device=lm.device, dtype=lm.dtype)
        nn.init.normal_(self.route_head.weight, std=getattr(text_config, "initializer_range", 0.02))
        if bias:
            nn.init.zeros_(self.route_head.bias)

    @property
    def num_experts(self) -> int:
        return self.route_head.out_features

    @property
    def config(self) -> Any:
        return self.lm.config

    @property
    def generation_config(self) -> Any:
        return self.lm.generation_config

    @property
    def _no_split_modules(self) -> Any:
        """Layers that are one piece of a sharded model; accelerate asks the model that it wraps."""
        return self.lm._no_split_modules

    @property
    def device(self) -> torch.device:
        return self.lm.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm.dtype

    def forward(self, input_ids: Tensor, *, logits_to_keep: int = 0, **inputs: Any) -> RouterOutput:
        """Logits and route logits at the last ``logits_to_keep`` positions (0 = all); other inputs go to the LM."""
        captured: list[Tensor] = []
        # The decoder's output is what feeds the LM head, after the final norm; asking for all hidden states instead
        # would keep every layer's
        hook = self.lm.get_decoder().register_forward_hook(lambda _module, _args, output: captured.append(output[0]))
        try:
            logits = self.lm(input_ids=input_ids, logits_to_keep=logits_to_keep, **inputs).logits
        finally:
            hook.remove()
        return RouterOutput(logits=logits, route_logits=self.route(captured[0][:, -logits_to_keep:]))

    def route(self, hidden: Tensor) -> Tensor:
        """W h in float32: ``[..., hidden]`` to ``[..., experts]``."""
        head = self.route_head
        bias = None if head.bias is None else head.bias.float()
        return nn.functional.linear(hidden.to(head.weight.device).float(), head.weight.float(), bias)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: Any = None, **options: Any) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory, the same gradients.

        Trainer calls it, or by its older name `gradient_checkpointing_enable`, on the model that it trains.
        """
        _either(self.lm, "checkpointing_enable")(activation_checkpointing_kwargs, **options)

    def activation_checkpointing_disable(self) -> None:
        _either(self.lm, "checkpointing_disable")()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **options: Any) -> None:
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        self.activation_checkpointing_disable()

    def save_pretrained(self, folder: str | Path, *, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the LM as a normal checkpoint, which loads as a plain causal LM too, with the head beside it.

        Of an LM with an adapter only the adapter is written; its base is known by hub id or folder.

        Args:
            state_dict: keys and tensors as of `state_dict`, instead of the live weights; for training that shards them
                and gathers them here.
        """
        save_model(self.lm, folder, _part(state_dict, "lm."))
        weights = _part(state_dict, "route_head.") or self.route_head.state_dict()
        head = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(head, Path(folder) / ROUTE_HEAD_FILE, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | ModelReference,
        *,
        dtype: Dtype = None,
        device: Any = None,
        loaded: Loaded | None = None,
    ) -> Self:
        """Load what `save_pretrained` wrote. Raises `CheckpointError` if either part is missing or corrupt.

        Args:
            dtype: of the LM; see `load_model`.
            device: of the LM.
            loaded: models that may be used again.
        """
        reference = as_reference(folder)
        head = load_route_head(Path(reference.model))
        lm = load_model(reference, dtype=dtype, device=device, loaded=loaded)
        num_experts, hidden_size = head["weight"].shape
        if hidden_size != lm.config.get_text_config().hidden_size:
            raise CheckpointError(
                f"{reference.model}: the route head reads {hidden_size} features but the LM has "
                f"{lm.config.get_text_config().hidden_size}; the folder mixes two routers, save it again"
            )
        router = cls(lm, num_experts, bias="bias" in head)
        router.route_head.load_state_dict(head)
        return router.eval()


def _either(lm: Any, name: str) -> Any:
    """One of two names: transformers renamed these methods within 5, and the old one warns where there is a new one."""
    return getattr(lm, f"activation_{name}", None) or getattr(lm, f"gradient_{name}")


def _part(state_dict: dict[str, Tensor] | None, prefix: str) -> dict[str, Tensor] | None:
    if state_dict is None:
        return None
    return {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}


def load_route_head(folder: Path) -> dict[str, Tensor]:
    """The route head's tensors: ``weight`` ``[experts, hidden]`` and maybe ``bias``. Raises `CheckpointError`."""
    path = folder / ROUTE_HEAD_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {ROUTE_HEAD_FILE}, so it is no router; train one with fusionroute sft")
    try:
        head = load_file(path)
        return {name: head[name] for name in ("weight", "bias") if name in head or name == "weight"}
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} is corrupt ({error}); save the router again") from error
