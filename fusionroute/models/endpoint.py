"""A language model that runs elsewhere, behind an OpenAI-compatible endpoint. Knows nothing of what it is asked for."""

import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from fusionroute.errors import FusionRouteError, SettingsError
from fusionroute.models.prompt import Message

logger = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
ATTEMPTS, LONGEST_WAIT, TIMEOUT = 5, 60.0, 120.0  # the latter two in seconds
OF_ONE_REQUEST = (400, 413, 422)  # statuses by which a single conversation may be refused while others are answered


class RequestRefusedError(SettingsError):
    """The endpoint refuses this conversation; others it may well answer. If it refuses all, a setting is wrong."""


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

    What may pass (429, 5xx, no connection, no answer in time) is tried again after a growing pause, or after the one
    that the server names in ``Retry-After`` (seconds or a date), but never after more than a minute. A model that
    refuses to be given a temperature is asked without one, at its own. It may be asked from several threads at once.

    Args:
        pause: seconds before the second attempt.
        timeout: seconds to wait for an answer; None is `TIMEOUT`.
        stop: once it is set, by another thread, no further attempt is made and no pause is waited out.

    Raises:
        SettingsError: an address that is none, or that holds more than one: a password, say.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        pause: float = 1.0,
        timeout: float | None = None,
        stop: threading.Event | None = None,
    ):
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"judge_url starts with http:// or https://; got {url!r}")
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:  # said and written down, so no place for a secret
            raise SettingsError(
                f"judge_url is an address alone, without a user, a password or a query; give {parts.scheme}://"
                f"{parts.netloc.rpartition('@')[2]}{parts.path}, and the key in {KEY_VARIABLE}"
            )
        self.address = f"{url.rstrip('/')}/chat/completions"
        self.model = model
        self.pause = pause
        self.timeout = timeout if timeout is not None else TIMEOUT
        self.stop = stop or threading.Event()
        self.takes_temperature = True
        self.opener = build_opener(_StayHere)

    def ask(self, messages: Sequence[Message]) -> Reply:
        """One reply to a conversation.

        Raises:
            RequestRefusedError: the endpoint refuses the request, by a status that may be this conversation's fault.
            SettingsError: it refuses by another status, redirects the request, or answers with something else.
            FusionRouteError: it kept failing, or `stop` was set before it did otherwise.
        """
        for attempt in range(ATTEMPTS):
            try:
                return self._ask_at_a_temperature(messages)
            except _TryAgain as error:
                failure = error
            pause = min(failure.wait or self.pause * 2**attempt, LONGEST_WAIT)
            if attempt + 1 < ATTEMPTS and self.stop.wait(pause):
                raise FusionRouteError(f"stopped asking the judge at {self.address}, which had failed by {failure}")
        raise FusionRouteError(f"the judge at {self.address} failed {ATTEMPTS} times, the last time by {failure}")

    def _ask_at_a_temperature(self, messages: Sequence[Message]) -> Reply:
        """At temperature 0 unless it refuses that: a refusal that names it, of what is then answered without it."""
        if not self.takes_temperature:
            return self._ask_once(messages)
        try:
            return self._ask_once(messages, temperature=0)
        except RequestRefusedError as error:
            if "temperature" not in str(error).lower():  # a quotation of the prompt may name it too: then this fails
                raise
        reply = self._ask_once(messages)
        if self.takes_temperature:
            self.takes_temperature = False
            logger.warning("%s refuses temperature 0 and is asked without; replies may be drawn at random", self.model)
        return reply

    def _ask_once(self, messages: Sequence[Message], **options: Any) -> Reply:
        """Raises `_TryAgain` if that may help."""
        try:
            with self.opener.open(self._request(messages, options), timeout=self.timeout) as response:
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

    def _request(self, messages: Sequence[Message], options: dict[str, Any]) -> Request:
        body = {"model": self.model, "messages": list(messages), **options}
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
        return _TryAgain(said, _seconds(error.headers.get("Retry-After", "")))
    kind = RequestRefusedError if error.code in OF_ONE_REQUEST else SettingsError
    return kind(f"the judge at {address} refuses: {said}; check judge_url, judge_model and {KEY_VARIABLE}")


def _seconds(wait: str) -> float:
    """What ``Retry-After`` says, seconds or a date; 0 if it says nothing that is either."""
    if wait.isdecimal():
        return float(wait)
    try:
        moment = parsedate_to_datetime(wait)
    except ValueError:
        return 0.0
    return max(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - time.time(), 0.0)
