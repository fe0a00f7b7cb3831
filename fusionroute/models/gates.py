"""The gates of a mixture-of-experts model: which of them, what they say of each token, and overriding it for a while.

Routing means the probabilities of all experts: the softmax of a gate's logits, before its top-k. Letters in shapes:
B sequences of S positions in one forward pass, L chosen gates, E experts, n rows. A row is one token of a pass, counted
through the whole batch: sequence b, position s is row b S + s.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from fusionroute.errors import ModelOutputError, SettingsError, UnsupportedModelError
from fusionroute.models.gate_probe import Gate, Scoring, find_gates

__all__ = ["Gate", "Gates", "Scoring", "Tap", "choose_gates", "find_gates", "rows_of"]

Layers = int | str | Sequence[int]

_overridden: WeakSet[nn.Module] = WeakSet()  # gates of models that are inside an `overriding` block


def choose_gates(gates: Sequence[Gate], layers: Layers = 5) -> list[Gate]:
    """Some of ``gates``, in the order of the model.

    Args:
        layers: how many, counted from the last; ``"all"``; or places among the gates, where -1 is the last.

    Raises:
        SettingsError: fewer gates than that, a place that does not exist or is named twice, or none.
    """
    count = len(gates)
    if layers == "all":
        return list(gates)
    if isinstance(layers, int) and not isinstance(layers, bool):
        if not 1 <= layers <= count:
            raise SettingsError(
                f"layers: {layers} of the last MoE layers; the model has {count}, so give 1 to {count}, or 'all'"
            )
        return list(gates[-layers:])
    if isinstance(layers, (str, bool)) or not all(
        isinstance(place, int) and not isinstance(place, bool) for place in layers
    ):
        raise SettingsError(f"layers is a number of last MoE layers, 'all', or a list of their places; got {layers!r}")
    outside = [place for place in layers if not -count <= place < count]
    if outside or not layers:
        raise SettingsError(
            f"layers: {list(layers)}; the model has {count} MoE layers, so places run from {-count} to {count - 1}"
        )
    places = {place % count for place in layers}
    if len(places) < len(layers):
        raise SettingsError(f"layers: {list(layers)} names a layer twice (the model has {count} MoE layers)")
    return [gates[place] for place in sorted(places)]


def rows_of(attention_mask: Tensor, token: int | Tensor = -1) -> Tensor:
    """Rows of one token, or of some tokens, of every sequence in a batch that is padded on the left or on the right.

    Args:
        attention_mask: ``[B, S]``, 1 at tokens.
        token: which, counted among the tokens that are no padding; -1 is the last. One for all sequences, one for
            each ``[B]``, or several for each ``[B, c]``.

    Returns:
        ``[B]`` or ``[B c]``, sequence after sequence.

    Raises:
        SettingsError: a sequence has no such token, or has padding in between.
    """
    mask = attention_mask.bool()
    batch, width = mask.shape
    counts, first = mask.sum(1), mask.int().argmax(1)
    last = width - 1 - mask.flip(1).int().argmax(1)
    if bool((counts == 0).any()) or bool((last - first + 1 != counts).any()):
        raise SettingsError("an attention mask has at least one token a row, and padding only before or after them")
    wanted = torch.as_tensor(token, device=mask.device)
    wanted = wanted.expand(batch) if wanted.ndim == 0 else wanted
    wanted = wanted.reshape(batch, -1)
    place = torch.where(wanted < 0, wanted + counts[:, None], wanted)
    if bool(((place < 0) | (place >= counts[:, None])).any()):
        raise SettingsError(f"token {token} is asked for, but the shortest sequence has {int(counts.min())} tokens")
    start = torch.arange(batch, device=mask.device) * width + first
    return (start[:, None] + place).flatten()


class Tap:
    """What the chosen gates said in the last forward pass of a block; stays readable when the block has ended.

    That is what the model itself would choose, also under an override, in the layers it acts on and in those behind.
    """

    def __init__(self, gates: Sequence[Gate]):
        self._gates = gates
        self._logits: dict[int, Tensor] = {}

    @property
    def logits(self) -> list[Tensor]:
        """Of each chosen gate, ``[B S, E]``, before the softmax, as the gate returned them.

        Raises:
            SettingsError: no forward pass of the model has run in this block.
        """
        if len(self._logits) < len(self._gates):
            raise SettingsError("nothing was read: run the model inside the block, then ask for its routing")
        return [self._logits[at] for at in range(len(self._gates))]

    def routing(self, rows: Tensor | None = None) -> Tensor:
        """The softmax over all experts, ``[n, L, E]``, float32, with a gradient if the pass had one.

        Args:
            rows: ``[n]``, as `rows_of` gives them; None: every row.

        Raises:
            ModelOutputError: a gate's logits are not finite.
        """
        logits = self.logits
        chosen = [_finite(gate, _take(part, rows)) for gate, part in zip(self._gates, logits, strict=True)]
        return torch.stack([_probabilities(part).to(logits[0].device) for part in chosen], dim=1)

    def _note(self, at: int, logits: Tensor) -> None:
        self._logits[at] = logits


class Gates:
    """The chosen gates of one model: read, and override inside a ``with`` block. Nothing is patched, nothing stays.

    Args:
        model: a mixture-of-experts model of transformers, on any devices.
        layers: which gates, see `choose_gates`.

    Raises:
        UnsupportedModelError: see `find_gates`; or the chosen gates differ in their number of experts.
        SettingsError: see `choose_gates`.
    """

    def __init__(self, model: Any, layers: Layers = 5):
        self.model = model
        self._every = find_gates(model)
        self.gates = choose_gates(self._every, layers)
        sizes = sorted({(gate.experts, gate.scoring.top_k) for gate in self.gates})
        if len(sizes) > 1:
            raise UnsupportedModelError(
                f"the chosen gates of {type(model).__name__} choose "
                f"{' and '.join(f'{top_k} of {experts} experts' for experts, top_k in sizes)}; choose layers that agree"
            )
        self.experts, self.top_k = sizes[0]

    @property
    def count(self) -> int:
        """L, the number of chosen gates."""
        return len(self.gates)

    def parameters(self) -> list[nn.Parameter]:
        """The weights ``[E, hidden]`` of the chosen gates."""
        return [gate.weight for gate in self.gates]

    @contextmanager
    def reading(self) -> Iterator[Tap]:
        """Note what the chosen gates say, in every forward pass of the block."""
        tap = Tap(self.gates)
        with _hooked(self.gates, [_reader(tap, at) for at in range(self.count)]):
            yield tap

    @contextmanager
    def overriding(self, routing: Tensor | Sequence[Tensor], rows: Tensor | None = None) -> Iterator[Tap]:
        """Force the routing of some tokens in the **first** forward pass of the block.

        Later passes are the model's own: in ``generate()``, whose passes after the first hold one token a sequence,
        the prompt is overridden and what is generated is not. Gradient checkpointing repeats the first pass in
        the backward pass, which must therefore run inside the block (torch refuses it outside).

        Each row is divided by its own sum; then come the gate's own top-k, renormalisation and scale. Gradients flow
        to ``routing``. Through that division they reach every expert; where the gate renormalises, the sum cancels
        and the gradient is zero on all but the chosen experts (specification, section 9.4).

        Args:
            routing: ``[n, L, E]`` or ``[n, L E]``, or one ``[n, E]`` for each chosen gate; weights of experts, not
                negative. The model's own routing leaves the model's output as it is, to the last bit.
            rows: ``[n]``, different from each other, as `rows_of` gives them; None: n = B S, every token of the pass.

        Yields:
            A `Tap`, as in `reading`.

        Raises:
            SettingsError: another shape, weights that are negative, not finite or all zero, rows that are not in the
                pass, or the model is being overridden already.
        """
        override = _Override(self._per_gate(routing), rows)
        every = [gate.module for gate in self._every]
        if any(module in _overridden for module in every):
            raise SettingsError("the model's routing is overridden already; end that block before beginning another")
        tap = Tap(self.gates)
        hooks = [_chained(_reader(tap, at), override.hook(at, gate)) for at, gate in enumerate(self.gates)]
        _overridden.update(every)
        try:
            with _hooked(self.gates, hooks):
                yield tap
        finally:
            for module in every:
                _overridden.discard(module)

    def _per_gate(self, routing: Tensor | Sequence[Tensor]) -> list[Tensor]:
        parts = self._split(routing)
        for gate, part in zip(self.gates, parts, strict=True):
            sane = part.detach().isfinite().all() & (part >= 0).all() & (part.sum(-1) > 0).all()
            if not bool(sane):
                raise SettingsError(
                    f"routing for {gate.name} has a row with a negative weight, one that is no number, or nothing but "
                    "zeros; give weights of experts, some of them positive"
                )
        return [_normalised(part if part.dtype == torch.float64 else part.float()) for part in parts]

    def _split(self, routing: Tensor | Sequence[Tensor]) -> list[Tensor]:
        layers, experts = self.count, self.experts
        if isinstance(routing, Tensor):
            joined = routing.ndim == 2 and routing.shape[1] == layers * experts
            whole = routing.unflatten(1, (layers, experts)) if joined else routing
            parts = list(whole.unbind(1)) if whole.ndim == 3 else []
        else:
            parts = list(routing)
        if (
            len(parts) == layers
            and all(part.shape == (len(parts[0]), experts) for part in parts)
            and all(part.is_floating_point() for part in parts)
        ):
            return parts
        got = f"{routing.dtype} {list(routing.shape)}" if isinstance(routing, Tensor) else [p.shape for p in parts]
        raise SettingsError(
            f"routing is floating point [n, {layers}, {experts}] (or [n, {layers * experts}]), or {layers} tensors "
            f"[n, {experts}], for {layers} gates and {experts} experts; got {got}"
        )


Hook = Callable[[nn.Module, Any, Any], Any]


@contextmanager
def _hooked(gates: Sequence[Gate], hooks: Sequence[Hook]) -> Iterator[None]:
    handles = [gate.module.register_forward_hook(hook) for gate, hook in zip(gates, hooks, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reader(tap: Tap, at: int) -> Hook:
    def read(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if not _in_backward():  # what a checkpoint repeats has been noted
            tap._note(at, output[0])

    return read


def _chained(first: Hook, then: Hook) -> Hook:
    def both(module: nn.Module, inputs: Any, output: Any) -> Any:
        first(module, inputs, output)
        return then(module, inputs, output)

    return both


class _Override:
    """What is forced, ``[n, E]`` a gate, and which gates have had their first pass."""

    def __init__(self, forced: Sequence[Tensor], rows: Tensor | None):
        if rows is not None and (rows.ndim != 1 or len(rows) != len(forced[0]) or len(rows.unique()) != len(rows)):
            raise SettingsError(
                f"rows are {len(forced[0])} different indices, one for each row of the routing; got {rows.tolist()}"
            )
        self._forced = forced
        self._rows = rows
        self._done: set[int] = set()

    def hook(self, at: int, gate: Gate) -> Hook:
        def force(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if at in self._done and not _in_backward():
                return None
            self._done.add(at)
            return self._replaced(gate, self._forced[at], *output)

        return force

    def _replaced(self, gate: Gate, forced: Tensor, logits: Tensor, weights: Tensor, index: Tensor) -> Any:
        forced = forced.to(logits.device)
        rows = None if self._rows is None else self._rows.to(logits.device)
        self._check(rows, len(forced), len(logits))
        _finite(gate, _take(logits, rows))
        mine, places = gate.scoring(forced)
        mine, places = mine.to(weights.dtype), places.to(index.dtype)
        if rows is None:
            return logits, mine, places
        return logits, weights.index_copy(0, rows, mine), index.index_copy(0, rows, places)

    @staticmethod
    def _check(rows: Tensor | None, count: int, tokens: int) -> None:
        if rows is None and count != tokens:
            raise SettingsError(f"routing for {count} tokens, but the pass has {tokens}; say which by rows")
        if rows is not None and count and (int(rows.min()) < 0 or int(rows.max()) >= tokens):
            raise SettingsError(f"rows are indices into the {tokens} tokens of the pass; got {rows.tolist()}")


def _in_backward() -> bool:
    """Whether this forward pass is one that gradient checkpointing repeats."""
    return torch._C._current_graph_task_id() != -1


def _take(logits: Tensor, rows: Tensor | None) -> Tensor:
    return logits if rows is None else logits[rows.to(logits.device)]


def _finite(gate: Gate, logits: Tensor) -> Tensor:
    if not bool(logits.detach().isfinite().all()):
        remedy = "load the model in bfloat16 or float32" if logits.dtype == torch.float16 else "check its weights"
        raise ModelOutputError(
            f"the gate {gate.name} (layer {gate.layer}, {logits.dtype}) gives logits that are not finite; {remedy}"
        )
    return logits


def _probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)


def _normalised(routing: Tensor) -> Tensor:
    """Rows divided by their own sums.

    A softmax sums to 1 but for rounding. There the divisor is exactly 1, so that no bit changes; the gradient is that
    of the division all the same.
    """
    total = routing.sum(-1, keepdim=True)
    is_one = (total - 1).abs() <= 8 * torch.finfo(routing.dtype).eps
    return routing / torch.where(is_one, total + (1 - total).detach(), total)
