"""What a server may be told: where it listens, how much it takes on at once, who may ask."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fusionroute.config import Settings
from fusionroute.engine.engine import MAX_BATCH
from fusionroute.engine.memory import parse_bytes
from fusionroute.engine.speculation import SpeculationSettings
from fusionroute.errors import SettingsError

KEY_VARIABLE = "FUSIONROUTE_API_KEY"
HOST = re.compile(r"\*|[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]")


def _bytes(size: Any) -> int:
    try:
        return parse_bytes(size)
    except SettingsError:
        raise ValueError("a number of bytes above 0 is needed, such as 4194304 or '4MiB'") from None


def _readable_bytes(size: Any) -> Any:
    """Kept as it was written; only looked at, so that a misspelt one is told before any model is loaded."""
    if size is not None:
        _bytes(size)
    return size


def _speculation(value: Any) -> Any:
    try:
        return SpeculationSettings.of(value)
    except SettingsError as error:
        raise ValueError(str(error).removeprefix("speculation: ")) from None


def _a_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _a_host(name: str) -> str:
    name = f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name
    if not HOST.fullmatch(name):
        raise ValueError("a host is a name or an address without scheme, port and path, such as models.example")
    return name.lower().removesuffix(".")


Bytes = Annotated[int, BeforeValidator(_bytes)]
Names = Annotated[tuple[str, ...], BeforeValidator(_a_list)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_a_host)], ...], BeforeValidator(_a_list)]


class ServerSettings(Settings):
    """Options of ``fusionroute serve``.

    Attributes:
        host, port: where it listens; anything but this machine itself is to be asked for.
        name: what the team is called as a model id; None = the folder's or file's name.
        max_batch: answers that are written at once.
        max_waiting: answers that may wait for a place; while so many do, requests are refused (429).
        cache_limit: bytes of key-value cache per device, see `Engine`.
        prefix_reuse: whether a request that begins like another copies what the models keep of that one. By response
            times a client can then tell whether others began alike; switch it off where that matters.
        prefill_chunk: tokens of a prompt that a model reads between two tokens of running answers; None = what suits
            the device.
        max_new_tokens: the most that one answer may have, and what it may where a request says nothing.
        max_prompt_tokens: the longest prompt; None = as long as the models' context.
        max_n: answers to one request.
        time_limit: seconds that a request may take from its arrival, waiting included.
        max_body: bytes of one request.
        body_timeout, send_timeout: seconds in which a client sends its request, and takes what is sent to it.
        max_connections: clients that are connected at once.
        grace: seconds in which running answers may end after the server was told to stop.
        cors: web pages' origins that may ask from a browser; ``"*"`` = any.
        allowed_hosts: names beside this machine's own by which the server may be addressed; ``"*"`` = any. Looked at
            only if some are given, or if nobody needs a key and only this machine may ask: a web page of a stranger can
            otherwise ask too, by a name of its own that it lets point here.
        api_key_file: keys that may ask, one a line, ``#`` begins a comment.
        api_keys: all of them: given in code, by the file, and by the variable FUSIONROUTE_API_KEY; none = anybody may.
        log_prompts: whether prompts and answers stand in the log.
        playground: whether the server shows its page.
        speculation: how a team drafts, as in `Team.generate`; None = not at all.
    """

    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(8000, ge=0, le=65535)  # 0 = any free one
    name: str | None = Field(None, pattern=r"^[\w-][\w.-]*$")
    max_batch: int = Field(MAX_BATCH, gt=0)
    max_waiting: int = Field(256, ge=0)
    cache_limit: Annotated[int | str | None, BeforeValidator(_readable_bytes)] = None
    prefix_reuse: bool = True
    prefill_chunk: int | None = Field(None, gt=0)
    max_new_tokens: int = Field(4096, gt=0)
    max_prompt_tokens: int | None = Field(None, gt=0)
    max_n: int = Field(16, gt=0)
    time_limit: float = Field(600.0, gt=0)
    max_body: Bytes = 4 * 2**20
    body_timeout: float = Field(30.0, gt=0)
    send_timeout: float = Field(60.0, gt=0)
    max_connections: int = Field(2048, gt=0)
    grace: float = Field(30.0, ge=0)
    cors: Names = ()
    allowed_hosts: Hosts = ()
    api_key_file: Path | None = None
    api_keys: tuple[str, ...] = Field((), repr=False, exclude=True)
    log_prompts: bool = False
    playground: bool = True
    speculation: Annotated[SpeculationSettings | None, BeforeValidator(_speculation)] = None

    @model_validator(mode="before")
    @classmethod
    def _gather_keys(cls, values: Any) -> Any:
        """Here and not at the field, whose error would show what came: a secret."""
        if not isinstance(values, Mapping):
            return values
        given = values.get("api_keys") or ()
        if not isinstance(given, (list, tuple)):
            raise ValueError("api_keys is a list of keys")
        keys = [*given, *_keys_of_file(values.get("api_key_file"))]
        keys += [os.environ[KEY_VARIABLE].strip()] if os.environ.get(KEY_VARIABLE, "").strip() else []
        for key in keys:
            if not isinstance(key, str) or not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("an API key consists of visible ASCII characters; one of those given does not")
        return {**values, "api_keys": tuple(dict.fromkeys(keys))}


def _keys_of_file(path: Any) -> list[str]:
    if path is None:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"api_key_file: {path} cannot be read ({why})") from None
    keys = [key for line in lines if (key := line.partition("#")[0].strip())]
    if not keys:
        raise ValueError(f"api_key_file: {path} holds no key; write one a line, or leave the option out")
    return keys
