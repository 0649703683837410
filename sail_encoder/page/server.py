"""The server of the page: uploads kept in memory, and answers that name no other host."""

import re
import socket
import sys
from typing import Any

import gradio
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sail_encoder.io.errors import UserError
from sail_encoder.page.actions import Page
from sail_encoder.page.app import build_page, explain
from sail_encoder.page.layout import UPLOAD_LIMIT, UPLOAD_REFUSAL
from sail_encoder.page.markup import UPLOAD_PATH, static
from sail_encoder.page.photos import Photo, Photos

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

_LAST_ANSWERS = 1
"""Seconds that answers may take once the server is to end."""

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; form-action 'self'"
)
"""A browser asks no other host for anything under this policy; gradio compiles its templates in the browser."""

_FOREIGN_TAG = re.compile(
    rb'<(?:meta|link)\b[^>]*["\']https?://[^>]*>|<script\b[^>]*\bsrc=["\']https?://[^>]*></script>'
)
"""Tags of gradio's page that name other hosts: its previews for social networks."""

_CLOSED = re.compile(r"/gradio_api/(?:upload|file|proxy|stream|deep_link)")
"""Ways of gradio for files, which the page does not use: no file of a visitor is written or served."""


def reserve(host: str, port: int) -> socket.socket:
    """The place to serve at, which nobody else can take from now on; browsers that come early wait.

    Raises:
        UserError: If the port is taken, or the host is not this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(address[0]), port), family=family)
    # Names that cannot be ones of hosts are no errors of the system.
    except (OSError, UnicodeError) as error:
        # Python adds the address, which is named already.
        reason, _, _ = str(getattr(error, "strerror", None) or error).partition(" (while")
        raise UserError(f"--host {host} --port {port} cannot be used ({reason}); try another --port") from None


def serve_page(page: Page, host: str, place: socket.socket) -> None:
    """Serves a page until it is interrupted.

    Args:
        page: The page.
        host: The address that people name.
        place: Where to listen, from `reserve`.
    """
    shown = f"[{host}]" if ":" in host else host
    print(f"the page is at http://{shown}:{place.getsockname()[1]} (Ctrl-C ends it)", file=sys.stderr)
    # Browsers keep a connection open as long as the page is.
    options = uvicorn.Config(build_server(page, host), log_level="warning", timeout_graceful_shutdown=_LAST_ANSWERS)
    uvicorn.Server(options).run(sockets=[place])


def build_server(page: Page, host: str = LOCAL_HOSTS[0]) -> FastAPI:
    """The page with its place for uploads; under a local host, names of others are refused (DNS rebinding)."""
    server = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_uploads(server, page.photos)
    theme = gradio.themes.Default(
        font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"), text_size="md"
    )
    blocks = build_page(page)
    mounted: FastAPI = gradio.mount_gradio_app(
        server,
        blocks,
        path="",
        theme=theme,
        head=f"<style>{static('page.css')}</style>",
        footer_links=[],
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
    )
    mounted.add_middleware(_OwnHostOnly)
    if host in LOCAL_HOSTS:
        mounted.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL_HOSTS, "[::1]"])
    return mounted


def _add_uploads(server: FastAPI, photos: Photos) -> None:
    @server.post(UPLOAD_PATH)
    async def upload(request: Request, name: str = "image") -> JSONResponse:
        """Takes a file, and answers with its token or with what is wrong with it."""
        # A page of another site may not fill the memory of this one.
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return JSONResponse({"error": "uploads come from the page itself"}, 403)
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > UPLOAD_LIMIT:
                return JSONResponse({"error": f"{name}: {UPLOAD_REFUSAL}"}, 413, {"connection": "close"})
        try:
            photo = await run_in_threadpool(Photo, name, bytes(content))
        except UserError as error:
            return JSONResponse({"error": explain(error)}, 422)
        except Exception as error:
            return JSONResponse({"error": f"{name}: {explain(error)}"}, 500)
        return JSONResponse({"token": photos.add(photo)})


class _OwnHostOnly:
    """Takes tags that name other hosts out of pages, tells browsers to ask no other, and closes what is not used."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif _CLOSED.match(scope["path"]):
            await JSONResponse({"error": "not here"}, 404)(scope, receive, send)
        else:
            await self.app(scope, receive, _Rewriter(send))


class _Rewriter:
    """Sends an answer on: pages when they are complete and rewritten, all else as it comes."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.start: Any = None
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["content-security-policy"] = _POLICY
            headers["referrer-policy"] = "no-referrer"
            if headers.get("content-type", "").startswith("text/html"):
                self.start = message
                return
        if self.start is None or message["type"] != "http.response.body":
            await self.send(message)
            return
        self.body += message.get("body", b"")
        if not message.get("more_body", False):
            body = _FOREIGN_TAG.sub(b"", self.body)
            MutableHeaders(scope=self.start)["content-length"] = str(len(body))
            await self.send(self.start)
            await self.send({"type": "http.response.body", "body": body})
