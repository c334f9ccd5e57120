"""Checks of every request to the page, before gradio sees it: host, origin and size; headers of every answer.

A web site that the page's user visits can send requests to this machine: across origins, or under a host name of its
own that it lets point here (DNS rebinding). Only requests for a name of the page and from the page itself are accepted.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from helpers.views.uploads import MAX_BYTES

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
MAX_UPLOAD, MAX_BODY = MAX_BYTES + 2**16, 2**20  # bytes of a request with a file, and of any other
NO_FRAMES = [(b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'")]


@dataclass(frozen=True)
class Guard:
    """ASGI application around `app`.

    `host_names`: by which a proxy is reached, with or without a port. `any_host`: no check of host and origin, for
    hosted notebooks, whose proxies have names that are not known before. `framed`: other pages may show this one in a
    frame, which notebooks do from an origin that only they know.
    """

    app: ASGIApp
    host_names: tuple[str, ...] = ()
    any_host: bool = False
    framed: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        send = self._with_headers(send)
        if refusal := self._check(scope):
            return await refusal(scope, receive, send)
        try:
            await self.app(scope, receive, send)
        except Exception:  # `_answer_error` has answered
            logging.exception("the page cannot answer %s", scope["path"])

    def _check(self, scope: Scope) -> PlainTextResponse | None:
        """The refusal of a request, None if it is accepted."""
        headers, port = Headers(scope=scope), scope["server"][1]
        if not self._is_own(host := headers.get("host", ""), port):
            hint = f"open http://localhost:{port}, or start the page with --host-name for the name of a proxy"
            return PlainTextResponse(f"This page is not served under this name: {hint}.", 403)
        if (origin := headers.get("origin")) and not self._is_own(netloc_of(origin), port):
            return PlainTextResponse("Requests of other pages are not accepted.", 403)
        if "transfer-encoding" in headers:
            return PlainTextResponse(f"{host} needs the length of a request (Content-Length).", 411)
        limit = MAX_UPLOAD if scope["path"].rstrip("/").endswith("/upload") else MAX_BODY
        if int(headers.get("content-length", 0)) > limit:
            return PlainTextResponse(f"A request may have at most {limit:,} bytes.", 413)
        return None

    def _is_own(self, host: str, port: int) -> bool:
        """Whether `host`, a name with or without a port, is this page's on `port`."""
        host = host.lower() if ":" in host.rpartition("]")[2] else f"{host.lower()}:80"
        own = {f"{name}:{port}" for name in LOCAL_NAMES} | {name.lower() for name in self.host_names}
        return self.any_host or host in own or host.rpartition(":")[0] in own

    def _with_headers(self, send: Send) -> Send:
        """`send` that adds our headers, and removes those of gradio that let other pages on this machine read."""
        added = [(b"x-content-type-options", b"nosniff"), *([] if self.framed else NO_FRAMES)]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", []) if not pair[0].startswith(b"access-control-")]
                message = message | {"headers": [*kept, *added]}
            await send(message)

        return send_with_headers


def netloc_of(origin: str) -> str:
    """Host and port of an Origin header, "" if it has none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def guarded(**options) -> dict:
    """Arguments of the page's application, `launch(app_kwargs=...)`: a `Guard` with these options around all of it, and
    a sentence for requests that gradio cannot read."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.middleware_stack = Guard(app.middleware_stack, **options)  # outside gradio's own CORS headers
        yield

    handlers: dict[type[Exception], Callable] = {Exception: _answer_error}
    return {"lifespan": lifespan, "exception_handlers": handlers}


def _answer_error(*_) -> PlainTextResponse:
    return PlainTextResponse("The page cannot read this request.", 400)
