"""``fusionroute chat``: a conversation with a team or an ensemble."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from fusionroute.cli import options
from fusionroute.cli.console import stdout
from fusionroute.cli.failing import BAD_INPUT, FAILED, complain
from fusionroute.cli.loading import batching, generation_settings, load_writers, speculation_options
from fusionroute.config import GenerationSettings
from fusionroute.errors import PromptError, RequestTooLargeError

if TYPE_CHECKING:
    from fusionroute.engine.engine import Engine
    from fusionroute.ensemble import Ensemble
    from fusionroute.team import Team


def chat(
    team: options.TeamOrEnsemble,
    max_new_tokens: options.MaxNewTokens = 256,
    do_sample: options.DoSample = False,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    no_complement: options.NoComplement = False,
    speculation: options.Speculation = None,
    max_draft: options.MaxDraft = None,
    override: options.EnsembleOverrides = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    cache_limit: options.CacheLimit = None,
) -> None:
    """Talk with a team or an ensemble: /reset forgets, /exit leaves, Ctrl-C ends an answer."""
    settings = generation_settings(
        max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p,
        min_p=min_p, seed=seed, stop=stop,
    )  # fmt: skip
    drafting = speculation_options(speculation, max_draft)
    loaded = load_writers(
        team, device, dtype, override, complement=not no_complement, is_speculating=drafting is not None
    )
    if loaded.prompt is None:
        raise PromptError(
            "these models read text as it is, so they cannot tell who spoke: set prompt in the team's team.json or in "
            "the ensemble file to chat_template or a named template such as alpaca, or use fusionroute generate"
        )
    batched = batching(complement=not no_complement, speculation=drafting, cache_limit=cache_limit)
    _converse(loaded, loaded.engine(**batched), settings)


def _converse(team: "Team | Ensemble", engine: "Engine", settings: GenerationSettings) -> None:
    from fusionroute.ensemble import Ensemble
    from fusionroute.terminal.tokens import ASKED_EXPLAINED, MARK_EXPLAINED

    console, messages = stdout(), list[dict[str, str]]()
    if console.is_terminal:
        console.print(ASKED_EXPLAINED if isinstance(team, Ensemble) else MARK_EXPLAINED, style="dim")
        console.print("/reset forgets the conversation, /exit leaves, Ctrl-C ends an answer", style="dim")
    for said in _lines_said(console.is_terminal):
        if said == "/exit":
            return
        if said == "/reset":
            messages.clear()
        elif said.startswith("/"):
            console.print(f"unknown command {said}; there are /reset and /exit", markup=False)
        else:
            messages = _reply(console, team, engine, [*messages, {"role": "user", "content": said}], settings)


def _reply(
    console: Console,
    team: "Team | Ensemble",
    engine: "Engine",
    asked: list[dict[str, str]],
    settings: GenerationSettings,
) -> list[dict[str, str]]:
    """The conversation with the answer at its end, or without the question if it could not be answered."""
    from fusionroute.cli.writing import Meter, print_legend, write_answer

    meter = Meter(engine)
    try:
        completion = write_answer(console, team, engine, asked, settings)
    except (PromptError, RequestTooLargeError) as error:
        complain(f"{error} (/reset forgets the conversation)", BAD_INPUT)
        return asked[:-1]
    if completion.error:
        complain(completion.error, FAILED)
        return asked[:-1]
    if console.is_terminal:
        print_legend(console, team, [completion], meter, explain=False)
        console.print()
    return [*asked, {"role": "assistant", "content": completion.text}]


def _lines_said(is_terminal: bool) -> Iterator[str]:
    if is_terminal:
        import readline  # noqa: F401 (importing it gives input() its editing and history)
    while True:
        try:
            said = input("› " if is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            return print()
        except UnicodeDecodeError as error:
            raise PromptError(f"the input is not UTF-8 ({error.reason}); convert it and pipe it in again") from None
        if said:
            yield said
