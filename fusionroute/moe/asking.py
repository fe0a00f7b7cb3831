"""Asking an MoE model questions, by one rule of what is correct: the only place of the room that runs it on them.

The routing that is forced here is that of the last prompt token. What stands before it does not depend on that, so a
prompt is read up to its last token once; asking again costs the last prompt token and the answers alone. Models whose
cache does not allow that are read in full, with the same result.

Letters in shapes: n questions, R rows of a pass (one an answer), W columns, L chosen gates, E experts.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache

from fusionroute.errors import DataError, ModelOutputError, SettingsError
from fusionroute.models.gates import Gates, Tap
from fusionroute.moe.passes import Prefix, evaluating, has_plain_cache, states_of, sum_over
from fusionroute.moe.questions.layout import Layout
from fusionroute.moe.questions.questions import Encoded
from fusionroute.progress import Progress, Silent

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative, of losses read with and without a kept prefix
HALF_TOLERANCE = 0.1

_keeps: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Said:
    """What a model said about each of n questions.

    Attributes:
        loss: ``[n]``, mean negative log-likelihood per token of the right answer, float32 (float64 of such a model).
        routing: ``[n, L, E]``, what the model itself would choose at the last prompt token, even under an override;
            without gradient.
        judged: ``[n]`` bool, or None where the wrong options were not read; see `correct`.
        pooled: ``[n, hidden]``, or None if it was not asked for; see `hidden`.
    """

    loss: Tensor
    routing: Tensor
    judged: Tensor | None = None
    pooled: Tensor | None = None

    @property
    def correct(self) -> Tensor:
        """Bool ``[n]``. With options: the right one has the highest total log-likelihood, end of sequence included.
        A free answer: every token of it, end of sequence included, is the model's first choice.

        Raises:
            SettingsError: only the right options were read.
        """
        if self.judged is None:
            raise SettingsError("only the right options were read, so nothing is known of the others; read them all")
        return self.judged

    @property
    def hidden(self) -> Tensor:
        """Mean of the last hidden states over the prompt, ``[n, hidden]``. Raises `SettingsError` if not asked for."""
        if self.pooled is None:
            raise SettingsError("hidden states were not asked for; ask with hidden=True")
        return self.pooled


class Asked:
    """One batch of questions, asked as often as one likes.

    Args:
        gates: of the model, which is read in evaluation mode and left as it was.
        encoded: prompts and answers of at least one token.
        pad_id: any id of the vocabulary; padding is masked.
        keep: read prompts up to their last token once, now, and keep what was read; None: if `keeps_prefix` allows it.

    Attributes:
        passes, tokens_read: forward passes so far and the tokens they read, padding left out.

    Raises:
        DataError: no questions, or a prompt or answer without tokens.
    """

    def __init__(self, gates: Gates, encoded: Sequence[Encoded], *, pad_id: int = 0, keep: bool | None = None):
        _refuse_empty(encoded)
        self.gates, self.encoded, self.pad_id = gates, encoded, pad_id
        self.passes = self.tokens_read = 0
        has_prefix = max(len(each.prompt) for each in encoded) > 1
        self._prefix = self._read_prefix() if has_prefix and (keeps_prefix(gates) if keep is None else keep) else None

    def full_read(self, only_right: bool = False) -> int:
        """Tokens that plain passes over every prompt with each of its answers would read."""
        pairs = [(self.encoded[number], at) for number, at in self._answers(only_right)]
        return sum(len(each.prompt) + len(each.answers[at]) - 1 for each, at in pairs)

    def say(
        self,
        routing: Tensor | None = None,
        *,
        only_right: bool = False,
        grad: bool = False,
        hidden: bool = False,
    ) -> Said:
        """What the model says of each question.

        Args:
            routing: ``[n, L, E]``, forced at the last prompt token, for all answers alike; None: the model's own.
            only_right: read the right answers alone; what is correct among options then stays unknown.
            grad: the loss carries a gradient to ``routing``, and to nothing else.
            hidden: pool the last hidden states over the prompt.

        Raises:
            SettingsError: routing of another shape, or that is none; see `Gates.overriding`.
            ModelOutputError: a gate's logits, or a loss, are not finite.
        """
        layout = Layout(self.encoded, self._answers(only_right), self._prefix is not None, self.pad_id, self.device)
        with torch.set_grad_enabled(grad), evaluating(self.gates.model):
            with self._listening(routing, layout) as tap:
                logits, states = self._read(layout, hidden)
            nll, is_first_choice = layout.judge(logits)
            return Said(
                loss=_finite(layout.total(nll)[layout.right] / layout.lengths[layout.right]),
                routing=tap.routing(layout.rows[layout.right]).detach().to(self.device),
                judged=self._judge(layout, nll.detach(), is_first_choice, only_right),
                pooled=None if states is None else self._pool(layout, states.detach()),
            )

    @property
    def device(self) -> torch.device:
        """Where the model takes its input, and where what was said lies."""
        return torch.device(self.gates.model.device)

    def _answers(self, only_right: bool) -> list[tuple[int, int]]:
        """Number of a question and of one of its answers, for every row of a pass."""
        return [
            (number, at)
            for number, each in enumerate(self.encoded)
            for at in ([each.right] if only_right else range(len(each.answers)))
        ]

    def _listening(self, routing: Tensor | None, layout: Layout) -> AbstractContextManager[Tap]:
        if routing is None:
            return self.gates.reading()
        if len(routing) != len(self.encoded):
            raise SettingsError(f"routing for {len(routing)} questions, but there are {len(self.encoded)}")
        return self.gates.overriding(routing[layout.owner.to(routing.device)], layout.rows)

    def _read(self, layout: Layout, hidden: bool) -> tuple[Tensor, Tensor | None]:
        """Logits of the columns that say something of an answer, and all last hidden states if they are wanted."""
        last = layout.width - layout.first
        self.tokens_read += int(layout.mask.sum())
        if self._prefix is None:  # the model counts positions itself: padding stands behind
            return self._forward(layout.ids, layout.mask, last, hidden, use_cache=False)
        mask = torch.cat([self._prefix.mask[layout.owner], layout.mask], dim=1)
        cache = self._prefix.cache(layout.owner)
        return self._forward(
            layout.ids, mask, last, hidden, position_ids=layout.positions, past_key_values=cache, use_cache=True
        )

    def _forward(
        self, ids: Tensor, mask: Tensor, last: int, hidden: bool, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        with ExitStack() as stack:
            states = stack.enter_context(states_of(self.gates.model)) if hidden else None
            output = self.gates.model(input_ids=ids, attention_mask=mask, logits_to_keep=last, **options)
        self.passes += 1
        return output.logits, states[-1] if states else None

    def _read_prefix(self) -> Prefix:
        """All tokens of the prompts but the last, padded on the left; without gradient."""
        ids = [each.prompt[:-1] for each in self.encoded]
        width = max(map(len, ids))
        padded = torch.tensor([[self.pad_id] * (width - len(row)) + row for row in ids], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=self.device)
        cache, positions = DynamicCache(), (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad(), evaluating(self.gates.model):
            _, states = self._forward(
                padded, mask, 1, True, position_ids=positions, past_key_values=cache, use_cache=True
            )
        assert states is not None
        self.tokens_read += int(mask.sum())
        return Prefix([(keys, values) for keys, values, *_ in cache], mask, sum_over(states, mask))

    def _judge(self, layout: Layout, nll: Tensor, is_first_choice: Tensor, only_right: bool) -> Tensor | None:
        if only_right and any(len(each.answers) > 1 for each in self.encoded):
            return None
        is_greedy = (layout.total(is_first_choice.long()) == layout.lengths).tolist()
        log_likelihoods = (-layout.total(nll)).tolist()
        judged, end = [], 0
        for each in self.encoded:
            start, end = end, end + len(each.answers)
            options = log_likelihoods[start:end]
            judged.append(options.index(max(options)) == each.right if len(options) > 1 else is_greedy[start])
        return torch.tensor(judged, device=nll.device)

    def _pool(self, layout: Layout, states: Tensor) -> Tensor:
        columns = torch.arange(layout.width, device=self.device)
        in_prompt = columns <= layout.columns[layout.right, None]
        total = sum_over(states.to(self.device)[layout.right], in_prompt)
        if self._prefix is not None:
            total = total + self._prefix.total
        return total / torch.tensor([len(each.prompt) for each in self.encoded], device=self.device)[:, None]


def ask(
    gates: Gates,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 32,
    routing: Tensor | None = None,
    hidden: bool = False,
    pad_id: int = 0,
    progress: Progress | None = None,
) -> Said:
    """Ask all questions once, in batches of like length; what was said comes back in their order, on the CPU.

    Args:
        batch_size: questions in a pass; each has a row for each of its answers.
        routing, hidden: see `Asked.say`.
        progress: hears of every question.

    Raises:
        DataError, SettingsError, ModelOutputError: as `Asked` and `Asked.say`.
    """
    _refuse_empty(encoded)
    progress = progress or Silent()
    if routing is not None and len(routing) != len(encoded):
        raise SettingsError(f"routing for {len(routing)} questions, but there are {len(encoded)}")
    # The longest first: if a batch does not fit in memory, it shows at once
    order = sorted(range(len(encoded)), key=lambda at: -encoded[at].longest)
    progress.start("ask", len(encoded))
    parts = []
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        some = [encoded[at] for at in batch]
        # Asked but once, a free answer is read with its prompt in one pass
        asked = Asked(gates, some, pad_id=pad_id, keep=None if any(len(each.answers) > 1 for each in some) else False)
        parts.append(_on_cpu(asked.say(None if routing is None else routing[batch], hidden=hidden)))
        progress.advance(len(batch))
    progress.finish(f"asked {len(encoded)} questions")
    return _in_order(parts, order)


def keeps_prefix(gates: Gates) -> bool:
    """Whether a model says the same if a prompt is read up to its last token once: measured on first sight."""
    model = gates.model
    if model not in _keeps:
        _keeps[model] = has_plain_cache(model) and _says_the_same(gates)
    return _keeps[model]


def _refuse_empty(encoded: Sequence[Encoded]) -> None:
    if not encoded:
        raise DataError("there are no questions; give at least one")
    for number, each in enumerate(encoded, start=1):
        if not each.prompt or not each.answers or not all(each.answers) or not 0 <= each.right < len(each.answers):
            raise DataError(
                f"question {number} lacks tokens in its prompt or an answer, or its right answer; got {each}"
            )


def _finite(loss: Tensor) -> Tensor:
    broken = (~loss.detach().isfinite()).nonzero().flatten().tolist()
    if broken:
        raise ModelOutputError(
            f"the loss of question {broken[0] + 1} of the batch is no finite number; the model's weights are broken or "
            "its dtype is too narrow (try bfloat16 or float32)"
        )
    return loss


def _says_the_same(gates: Gates) -> bool:
    """Two made-up questions of different lengths, asked with and without a kept prefix."""
    size = gates.model.config.get_text_config().vocab_size
    ids = [(7 * at + 1) % size for at in range(12)]
    encoded = [Encoded(ids[:6], (ids[6:9], ids[9:10]), 0), Encoded(ids[4:6], (ids[6:8],), 0)]
    plain = Asked(gates, encoded, keep=False).say()
    try:
        kept = Asked(gates, encoded, keep=True).say()
    except torch.OutOfMemoryError:
        raise
    except (TypeError, AttributeError, ValueError, IndexError, KeyError, RuntimeError, NotImplementedError):
        return False  # a cache of its own kind, which takes no plain one in its place
    error = ((kept.loss - plain.loss).abs() / plain.loss.clamp(min=1e-6)).max()
    return bool(error <= TOLERANCE.get(gates.model.dtype, HALF_TOLERANCE))


def _on_cpu(said: Said) -> Said:
    return Said(said.loss.cpu(), said.routing.cpu(), _cpu(said.judged), _cpu(said.pooled))


def _cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()


def _in_order(parts: Sequence[Said], order: Sequence[int]) -> Said:
    """Batches joined, and put back into the order that they were taken from."""
    back = torch.tensor(order).argsort()

    def joined(pieces: list[Tensor | None]) -> Tensor | None:
        tensors = [piece for piece in pieces if piece is not None]
        return torch.cat(tensors)[back] if tensors else None

    return Said(
        loss=torch.cat([part.loss for part in parts])[back],
        routing=torch.cat([part.routing for part in parts])[back],
        judged=joined([part.judged for part in parts]),
        pooled=joined([part.pooled for part in parts]),
    )
