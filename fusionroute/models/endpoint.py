"""A language model that runs elsewhere, behind an OpenAI-compatible endpoint. Knows nothing of what it is asked for."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from fusionroute.errors import FusionRouteError, SettingsError
from fusionroute.models.prompt import Message

KEY_VARIABLE = "OPENAI_API_KEY"
ATTEMPTS, LONGEST_WAIT, TIMEOUT = 5, 60.0, 120.0  # the latter two in seconds


@dataclass(frozen=True)
class Reply:
    """What an endpoint said.

    Attributes:
        model: as the endpoint calls it, often with a version; "" if it does not say.
        prompt_tokens, completion_tokens: as it counts (and bills) them; None if it does not say.
    """

    text: str
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ChatEndpoint:
    """Asks ``POST {url}/chat/completions`` at temperature 0, with the key of ``OPENAI_API_KEY`` if it is set.

    What may pass (429, 5xx, no connection, no answer in time) is tried again after a growing pause, or the one the
    server names. It may be asked from several threads at once.

    Args:
        pause: seconds before the second attempt.
        timeout: seconds to wait for an answer; None is `TIMEOUT`.

    Raises:
        SettingsError: an address that is none.
    """

    def __init__(self, url: str, model: str, *, pause: float = 1.0, timeout: float | None = None):
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"judge_url starts with http:// or https://; got {url!r}")
        self.address = f"{url.rstrip('/')}/chat/completions"
        self.model = model
        self.pause = pause
        self.timeout = timeout if timeout is not None else TIMEOUT
        self.opener = build_opener(_StayHere)

    def ask(self, messages: Sequence[Message]) -> Reply:
        """One reply to a conversation.

        Raises:
            SettingsError: the endpoint refuses the request, redirects it, or answers with something else.
            FusionRouteError: it kept failing.
        """
        for attempt in range(ATTEMPTS):
            try:
                return self._ask_once(messages)
            except _TryAgain as error:
                failure = error
            if attempt + 1 < ATTEMPTS:
                time.sleep(min(failure.wait or self.pause * 2**attempt, LONGEST_WAIT))
        raise FusionRouteError(f"the judge at {self.address} failed {ATTEMPTS} times, the last time by {failure}")

    def _ask_once(self, messages: Sequence[Message]) -> Reply:
        """Raises `_TryAgain` if that may help."""
        try:
            with self.opener.open(self._request(messages), timeout=self.timeout) as response:
                body = response.read()
        except HTTPError as error:
            with error:
                raise _refusal(self.address, error) from None
        except (OSError, HTTPException) as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from error
        try:
            return _reply(json.loads(body))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise SettingsError(f"{self.address} answers, but with no chat completion: {body[:200]!r}") from error

    def _request(self, messages: Sequence[Message]) -> Request:
        body = {"model": self.model, "messages": list(messages), "temperature": 0}
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        return Request(self.address, json.dumps(body).encode(), headers)


class _TryAgain(Exception):
    """What failed may work later, after ``wait`` seconds if the server said so."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait


class _StayHere(HTTPRedirectHandler):
    """Another address would be handed the key; a redirect is an answer like any other, and a refusal."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _reply(body: Any) -> Reply:
    usage = body.get("usage") or {}
    return Reply(
        text=str(body["choices"][0]["message"]["content"] or ""),
        model=str(body.get("model") or ""),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _refusal(address: str, error: HTTPError) -> Exception:
    """What an HTTP status other than success means here."""
    said = f"HTTP {error.code}: {error.read(500).decode(errors='replace')}".strip()
    if error.code == 429 or error.code >= 500:
        wait = error.headers.get("Retry-After", "")
        return _TryAgain(said, float(wait) if wait.isdigit() else 0.0)
    return SettingsError(f"the judge at {address} refuses: {said}; check judge_url, judge_model and {KEY_VARIABLE}")
