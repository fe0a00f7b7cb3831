"""Who stands where in a forward pass over questions and their answers, and what its logits say. Knows no model.

Letters in shapes: n questions, R rows (one an answer), W columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusionroute.moe.questions.questions import Encoded


class Layout:
    """A row for each answer, padded on the right.

    Args:
        encoded: the questions.
        answers: number of a question and of one of its answers, for every row, question after question.
        is_kept: prompts but their last tokens stand in a cache and are not read.

    Attributes:
        ids, mask, positions: ``[R, W]``; a row holds what is not kept: the last prompt token and the answer but its
            last token, or before these the whole prompt.
        columns: of the last prompt token, ``[R]``; ``first`` is the least of them.
        owner: the question that a row belongs to, ``[R]``.
        right: the row of each question's right answer, ``[n]``.
        lengths: of the answers, ``[R]``.
        rows: the last prompt token of each row as `Gates` counts rows, ``[R]``.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        answers: Sequence[tuple[int, int]],
        is_kept: bool,
        pad_id: int,
        device: torch.device,
    ):
        places = [0 if is_kept else len(encoded[number].prompt) - 1 for number, _ in answers]
        starts = [len(encoded[number].prompt) - 1 - place for (number, _), place in zip(answers, places, strict=True)]
        written = [encoded[number].answers[at] for number, at in answers]
        read = [
            (encoded[number].prompt + answer)[start:-1]
            for (number, _), answer, start in zip(answers, written, starts, strict=True)
        ]
        self.width, self.first = max(map(len, read)), min(places)
        self.ids = torch.tensor([row + [pad_id] * (self.width - len(row)) for row in read], device=device)
        self.mask = torch.tensor([[1] * len(row) + [0] * (self.width - len(row)) for row in read], device=device)
        self.positions = torch.tensor(starts, device=device)[:, None] + torch.arange(self.width, device=device)
        self.columns = torch.tensor(places, device=device)
        self.rows = torch.arange(len(read), device=device) * self.width + self.columns
        self.owner = torch.tensor([number for number, _ in answers], device=device)
        is_right = [at == encoded[number].right for number, at in answers]
        self.right = torch.tensor(is_right, device=device).nonzero().flatten()
        self.lengths = torch.tensor([len(answer) for answer in written], device=device)
        tokens = [
            (row, place + at, token)
            for row, (place, answer) in enumerate(zip(places, written, strict=True))
            for at, token in enumerate(answer)
        ]
        self._row, self._column, self._target = torch.tensor(tokens, device=device).unbind(1)

    def judge(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of every answer token: −log π and whether it is the likeliest, from logits ``[R, W − first, vocabulary]``."""
        row, column, target = (part.to(logits.device) for part in (self._row, self._column, self._target))
        said = logits[row, column - self.first]
        said = said if said.dtype == torch.float64 else said.float()
        nll = cross_entropy(said, target, reduction="none")
        return nll.to(self.ids.device), (said.argmax(-1) == target).to(self.ids.device)

    def total(self, values: Tensor) -> Tensor:
        """Sums over the tokens of each answer, ``[R]``."""
        return values.new_zeros(len(self.lengths)).index_add(0, self._row, values)
