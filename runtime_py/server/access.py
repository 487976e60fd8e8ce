"""Access: which pages and programs may call the API.

A page of the web can send requests to a server on the user's machine. It can also point a host name of its
own at 127.0.0.1 (DNS rebinding). So `Host` must be an IP address or a known name, and `Origin`,
which browsers send, must be the server's own or an allowed one.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime_py.server.errors import ApiError
from runtime_py.server.settings import ServerSettings

PUBLIC = frozenset({"/", "/health", "/v1/health", "/models"})
"""Paths that need no API key, as in llama.cpp."""
PUBLIC_FOLDER = "/page/"
"""Files of the chat page need no API key, either."""


class Access:
    """Checks `Host`, `Origin` and the API key of each request, and answers CORS preflights."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        """Wrap an application.

        Args:
            app: The application.
            settings: The settings of the server.
        """
        self._app = app
        self._keys = [key.encode() for key in settings.api_keys]
        self._hosts = {"localhost", *map(str.lower, (settings.host, *settings.allowed_hosts))}
        self._origins = frozenset(settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request.

        Args:
            scope: See ASGI.
            receive: See ASGI.
            send: See ASGI.

        Raises:
            ApiError: The request is refused.
        """
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        self._check_host(host)
        origin = headers.get("origin")
        foreign = origin is not None and not _is_own(origin, host)
        if origin is not None and foreign:
            if not self._origins & {origin, "*"}:
                raise ApiError(403, f"the origin {origin[:100]} may not call this server: see --allow-origin")
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                return await _preflight(origin, headers, send)
        if scope["path"] not in PUBLIC and not scope["path"].startswith(PUBLIC_FOLDER):
            self._check_key(headers)
        await self._app(scope, receive, _with_origin(send, origin) if origin and foreign else send)

    def _check_host(self, host: str) -> None:
        name = _host_name(host)
        if name is None or not (name in self._hosts or _is_address(name)):
            raise ApiError(403, f"the host {host[:100]!r} is not a name of this server: see --allow-host")

    def _check_key(self, headers: Headers) -> None:
        if not self._keys:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = (key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")).encode()
        matches = [hmac.compare_digest(given, each) for each in self._keys]  # all: constant time
        if not any(matches):
            raise ApiError(
                401,
                "the API key is missing or wrong: send it in the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _host_name(host: str) -> str | None:
    """The name in `Host`, without the port; None if it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_own(origin: str, host: str) -> bool:
    """Whether a page came from this server."""
    scheme, separator, rest = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and rest.lower() == host.lower()


async def _preflight(origin: str, headers: Headers, send: Send) -> None:
    answer = MutableHeaders(
        {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
            "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "*"),
            "Access-Control-Max-Age": "600",
            "Vary": "Origin",
        }
    )
    await send({"type": "http.response.start", "status": 204, "headers": answer.raw})
    await send({"type": "http.response.body", "body": b""})


def _with_origin(send: Send, origin: str) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = "X-Request-Id, Retry-After"
            headers.add_vary_header("Origin")
            message["headers"] = headers.raw
        await send(message)

    return wrapped
