"""Serves the page: where it listens, what a browser may ask for, and what is stored meanwhile.

Gradio's own `launch` would check itself through the proxy of the environment, and answer to any host name. Uploaded
sounds and generated images are in one temporary folder, which is deleted at the end.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fed_a2v.demo.explorer import Explorer
from fed_a2v.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Maximum size of an uploaded file in bytes.
MOST_BYTES = 20 * 2**20
# The page and its parts come from this server, and nothing leaves the browser for another.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


@contextmanager
def temporary_files() -> Iterator[str]:
    """A temporary folder for all files of Gradio, deleted at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="fed-a2v-demo-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def opened(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one.

    Raises:
        ConfigError: the port is taken or not allowed, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on --host {host} --port {port}: {error}; choose another port, 0 for any free one"
        ) from error


def host_names(host: str) -> list[str]:
    """The host names that requests to a loopback address may have.

    Starlette compares what precedes the first colon: of an IPv6 address, as in `[::1]:7860`, the bracket, which begins
    no other name.
    """
    return ["localhost", "[" if ":" in host else host]


def make_app(explorer: Explorer, host: str) -> FastAPI:
    """The web application; within `temporary_files`."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from fed_a2v.demo.page import CSS, make_page

    app = FastAPI(openapi_url=None)
    app.add_middleware(Policy)
    if is_loopback(host):
        # A page of another host must not read this one by resolving its own name to this machine.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=host_names(host))
    fonts = ["system-ui", "sans-serif"]
    page = make_page(explorer)
    page.has_launched = True  # otherwise Gradio copies any file of this machine that a request names
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        page,
        path="",
        max_file_size=MOST_BYTES,
        theme=gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=["monospace"]),
        css=CSS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
    )
    return mounted


def make_server(app: FastAPI) -> uvicorn.Server:
    """The server; `run(sockets=[...])` returns, or raises KeyboardInterrupt, after Ctrl-C."""
    import uvicorn

    # A browser's open page keeps a connection, for which the end would wait; it is then logged as an error.
    # Without `log_config=None` it would replace the handlers of all loggers of the process.
    config = uvicorn.Config(
        app, log_config=None, log_level="critical", timeout_graceful_shutdown=1, server_header=False
    )
    return uvicorn.Server(config)


class Policy:
    """Adds the headers that keep the page from asking other hosts for anything."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.encode(), value.encode()) for name, value in headers.items()),
                ]
            await send(message)

        await self.app(scope, receive, with_headers)
