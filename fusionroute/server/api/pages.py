"""The playground: plain files that know nothing but the public API. Exactly these are served, from memory."""

import hashlib
from importlib.resources import files

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from fusionroute.server.api.security import PAGE_PREFIX

INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Models write anything: nothing runs or is fetched but what this server serves, and no other site can frame the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept by the browser, but asked for again, so that a new version shows at once
}


def add_pages(app: FastAPI) -> None:
    """Add ``/`` and the page's files under ``/playground/``.

    Every file has a route of its own and is read here, once: a request names no path, so there is none to leave.
    """
    for name, content in _contents().items():
        path = "/" if name == INDEX else PAGE_PREFIX + name
        page = Page(content, TYPES[_suffix(name)])
        app.add_route(path, page.reply, methods=["GET", "HEAD"], include_in_schema=False)


class Page:
    """One file; answers 304 to a browser that has it already."""

    def __init__(self, content: bytes, media_type: str):
        self.content, self.media_type = content, media_type
        self.etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    async def reply(self, request: Request) -> Response:
        headers = {**HEADERS, "ETag": self.etag}
        if self.etag in _etags(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def _contents() -> dict[str, bytes]:
    folder = files("fusionroute.server") / "web"
    return {file.name: file.read_bytes() for file in folder.iterdir() if _suffix(file.name) in TYPES}


def _etags(header: str) -> list[str]:
    """Those a browser has; a proxy that compresses makes a tag a weak one, which is good enough here."""
    return [tag.strip().removeprefix("W/") for tag in header.split(",")]


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2]
