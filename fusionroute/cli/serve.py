"""``fusionroute serve``: a team or an ensemble behind OpenAI's API, and a page to try it."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionroute.cli import options
from fusionroute.cli.console import quiet
from fusionroute.cli.failing import BAD_INPUT, FAILED, complain
from fusionroute.cli.loading import speculation_options

if TYPE_CHECKING:
    from fusionroute.server.settings import ServerSettings

NEEDED = ("fastapi", "prometheus_client", "uvicorn")
LISTENING, LIMITS, ACCESS = "Where it listens", "How much it takes on", "Who may ask"


def _limit(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=LIMITS)


def serve(
    team: options.TeamOrEnsemble,
    host: Annotated[
        str | None, typer.Option(help="Address; else 127.0.0.1: this machine alone.", rich_help_panel=LISTENING)
    ] = None,
    port: Annotated[int | None, typer.Option(help="Else 8000; 0 is any free one.", rich_help_panel=LISTENING)] = None,
    name: Annotated[
        str | None, typer.Option(help="Model id of the team; else its folder's name.", rich_help_panel=LISTENING)
    ] = None,
    no_playground: Annotated[
        bool, typer.Option("--no-playground", help="Without the page at /.", rich_help_panel=LISTENING)
    ] = False,
    grace: Annotated[
        float | None,
        typer.Option(help="Seconds to finish answers in once told to stop; else 30.", rich_help_panel=LISTENING),
    ] = None,
    max_batch: Annotated[int | None, _limit("Answers written at once; else 64.")] = None,
    max_waiting: Annotated[int | None, _limit("Answers that may wait; else 256.")] = None,
    max_new_tokens: Annotated[int | None, _limit("Longest answer; else 4096 tokens.")] = None,
    max_prompt_tokens: Annotated[int | None, _limit("Longest prompt; else the context.")] = None,
    prefill_chunk: Annotated[
        int | None, _limit("Tokens of a prompt read between two tokens of running answers; else what suits the device.")
    ] = None,
    no_prefix_reuse: Annotated[
        bool,
        typer.Option(
            "--no-prefix-reuse",
            help="Read every prompt whole, also what another began with: response times then tell nothing of others.",
            rich_help_panel=LIMITS,
        ),
    ] = False,
    max_n: Annotated[int | None, _limit("Answers to one prompt; else 16.")] = None,
    time_limit: Annotated[float | None, _limit("Seconds for one request; else 600.")] = None,
    max_body: Annotated[str | None, _limit("Size of one request; else 4MiB.")] = None,
    body_timeout: Annotated[float | None, _limit("Seconds to send a request in; else 30.")] = None,
    send_timeout: Annotated[float | None, _limit("Seconds to take what is sent in; else 60.")] = None,
    max_connections: Annotated[int | None, _limit("Clients connected at once; else 2048.")] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Keys, one a line; FUSIONROUTE_API_KEY may hold one more. Without any, everybody may ask.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="Web page that may ask from a browser; repeatable.", rich_help_panel=ACCESS
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name by which the server may be addressed, * = any; repeatable. Else, without keys: this machine's.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Prompts and answers stand in the log.", rich_help_panel=ACCESS)
    ] = False,
    speculation: options.Speculation = None,
    max_draft: options.MaxDraft = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    cache_limit: options.CacheLimit = None,
) -> None:
    """Serve a team or an ensemble to every OpenAI client, with a page to try it; Ctrl-C ends it."""
    if missing := [library for library in NEEDED if find_spec(library) is None]:
        raise typer.Exit(
            complain(f"serving needs {' and '.join(missing)}: pip install 'fusionroute[server]'", BAD_INPUT)
        )
    quiet()
    from fusionroute.server.run import serve as run
    from fusionroute.server.settings import ServerSettings
    from fusionroute.server.worker import WorkerDiedError

    said = {
        "host": host, "port": port, "name": name, "grace": grace, "max_batch": max_batch, "max_waiting": max_waiting,
        "max_new_tokens": max_new_tokens, "max_prompt_tokens": max_prompt_tokens, "max_n": max_n,
        "time_limit": time_limit, "max_body": max_body, "body_timeout": body_timeout, "send_timeout": send_timeout,
        "max_connections": max_connections, "api_key_file": api_key_file, "cors": cors, "cache_limit": cache_limit,
        "log_prompts": log_prompts, "playground": not no_playground, "allowed_hosts": allowed_host,
        "prefill_chunk": prefill_chunk, "prefix_reuse": not no_prefix_reuse,
        "speculation": speculation_options(speculation, max_draft),
    }  # fmt: skip
    settings = ServerSettings.parse({option: value for option, value in said.items() if value is not None})
    _warn(settings)
    try:
        run(team, settings, device=device, dtype=dtype, announce=_announce)
    except WorkerDiedError as error:
        raise typer.Exit(complain(str(error), FAILED)) from None


def _warn(settings: "ServerSettings") -> None:
    from fusionroute.server.api.app import THIS_MACHINE

    if settings.host not in THIS_MACHINE and not settings.api_keys:
        typer.secho(
            f"warning: anybody who reaches {settings.host} may use these models, since there is no API key: give "
            "--api-key-file or FUSIONROUTE_API_KEY, or listen on 127.0.0.1",
            err=True,
            bold=True,
        )


def _announce(address: str, ids: list[str]) -> None:
    print(f"ready at {address} (OpenAI's API under {address}/v1)", flush=True)
    for id in ids:
        print(f"  {id}", flush=True)
