"""What a model would write on its own: shadows of sequences, continued greedily and cut back without recomputing."""

from collections.abc import Sequence as ListLike
from itertools import count

from fusionroute.engine.choice import append_tokens
from fusionroute.engine.runner import AnyRunner
from fusionroute.engine.sequence import Sequence


def shadow_of(sequence: Sequence) -> Sequence:
    """A sequence of its own with the same tokens, trace and stop rules, and cache rows of its own.

    It never passes the length that ``sequence`` promised. Its text is kept only where a stop string needs it.
    """
    shadow = Sequence(
        sequence.token_ids[: sequence.prompt_length],
        sequence.settings.model_copy(update={"seed": 0}),  # nothing is drawn, so no seed is
        eos_ids=sequence.eos_ids,
        context_length=sequence.max_length,
        tokenizer=sequence.tokenizer if sequence.settings.stop else None,
    )
    shadow.prompt = sequence.prompt
    _catch_up(shadow, sequence)
    return shadow


def realign(shadow: Sequence, sequence: Sequence, runners: ListLike[AnyRunner]) -> None:
    """Make ``shadow`` the same as ``sequence`` again; of what the models have read, what both begin with stays."""
    common = _common(shadow.token_ids, sequence.token_ids)
    shadow.rollback(common)
    for runner in runners:
        runner.rollback(shadow, common)
    _catch_up(shadow, sequence)


def extend(runner: AnyRunner, shadows: ListLike[Sequence], steps: int | None = None) -> None:
    """Let one model continue all ``shadows`` greedily, in one batch, each until its stop rules end it.

    Args:
        steps: tokens that each gets at most; None = as many as it takes.

    A shadow for which the model returns no finite logits fails, as in `Runner.read`.
    """
    for _ in count() if steps is None else range(steps):
        running = unfinished(shadows)
        if not running:
            return
        logits = runner.read(running).logits[:, -1].float()
        append_tokens(running, logits.argmax(-1), logits, experts=[runner.name] * len(running))


def unfinished(sequences: ListLike[Sequence]) -> list[Sequence]:
    return [sequence for sequence in sequences if not sequence.is_finished]


def pass_on_failures(shadows: ListLike[Sequence], sequences: ListLike[Sequence]) -> None:
    """A model that fails on a shadow has failed on the sequence that it belongs to."""
    for shadow, sequence in zip(shadows, sequences, strict=True):
        if shadow.error is not None:
            sequence.fail(shadow.error)


def release(shadows: ListLike[Sequence], runners: ListLike[AnyRunner]) -> None:
    """Free the shadows' rows in every model."""
    for runner in runners:
        for shadow in shadows:
            runner.release(shadow)


def _catch_up(shadow: Sequence, sequence: Sequence) -> None:
    for record in sequence.trace[shadow.position :]:
        shadow.append(record)


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    for at, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return at
    return min(len(one), len(other))
