"""In-context learning, the baseline that trains nothing: similar questions and their answers stand before each one."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fusionroute.errors import DataError
from fusionroute.models.prompt import Message, Prompt
from fusionroute.moe.questions.questions import Question
from fusionroute.ops.nearest import nearest


def in_context(
    questions: Sequence[Question],
    pool: Sequence[Question],
    embeddings: Tensor,
    pool_embeddings: Tensor,
    succeeded: Tensor,
    *,
    k: int = 3,
    as_messages: bool,
    exclude_self: bool = False,
) -> list[Question]:
    """Each question after the ``k`` most similar ones of ``pool`` that the model answers correctly.

    The most similar one stands last, next to the question. How many the paper takes, in which order and how they are
    written is not in it: all of that is our choice.

    Args:
        embeddings, pool_embeddings: of the questions and of the pool, ``[n, d]`` and ``[m, d]``.
        succeeded: which of the pool the model answers correctly, bool ``[m]``.
        as_messages: write examples as turns of user and assistant, for a model whose prompt format has turns; else as
            plain text, answers right behind their prompts and an empty line between.
        exclude_self: questions and pool are the same ones, and none is its own example.

    Raises:
        DataError: nothing in the pool was answered correctly; or plain text is wanted and a prompt is a conversation.
    """
    if not bool(succeeded.any()):
        raise DataError(
            f"of {len(pool):,} questions the model answers none correctly, so there is no example to show; "
            "give more questions"
        )
    found = nearest(embeddings, pool_embeddings, k, allowed=succeeded, exclude_self=exclude_self)
    shown = [
        [pool[place] for place, square in zip(places, squares, strict=True) if square != float("inf")]
        for places, squares in zip(found.index.tolist(), found.square.tolist(), strict=True)
    ]
    write = _turns if as_messages else _text
    return [
        replace(question, prompt=write(examples[::-1], question))
        for examples, question in zip(shown, questions, strict=True)
    ]


def _turns(examples: Sequence[Question], question: Question) -> Prompt:
    turns: list[Message] = []
    for example in examples:
        turns += [*_messages(example), {"role": "assistant", "content": example.answer}]
    own = _messages(question)
    system = [message for message in own if message["role"] == "system"]  # once, and first
    return [*system, *(each for each in (*turns, *own) if each["role"] != "system")]


def _messages(question: Question) -> list[Message]:
    if isinstance(question.prompt, str):
        return [{"role": "user", "content": question.prompt}]
    return list(question.prompt)  # type: ignore[arg-type]


def _text(examples: Sequence[Question], question: Question) -> Prompt:
    for each in (*examples, question):
        if not isinstance(each.prompt, str):
            raise DataError("a prompt is a conversation, and examples are to be plain text; use a prompt format")
    return "".join(f"{each.prompt}{each.answer}\n\n" for each in examples) + str(question.prompt)
