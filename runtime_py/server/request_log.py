"""The log of requests: an id, a line and the metrics of each; exceptions become errors of the API."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
import traceback
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime_py.server.body import ClientLeft
from runtime_py.server.errors import ApiError, api_error
from runtime_py.server.metrics import Metrics

HEADER = "X-Request-Id"
CLIENT_LEFT = 499
"""The status in the log for a client that left, as nginx writes it."""
_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_SILENT = frozenset({"/health", "/v1/health", "/metrics"})
"""Paths whose successes are not logged."""


class RequestLog:
    """Wraps the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        log: Callable[[str], None],
        names: Mapping[str, str],
        debug: bool = False,
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            metrics: Counts the requests.
            log: Takes a line for each request.
            names: See `api_error`.
            debug: Print the traceback of an exception that is not an `ApiError`.
        """
        self._app = app
        self._metrics = metrics
        self._log = log
        self._names = names
        self._debug = debug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request.

        Args:
            scope: See ASGI.
            receive: See ASGI.
            send: See ASGI.
        """
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begin = time.monotonic()
        sent = Headers(scope=scope).get(HEADER.lower(), "")
        request_id = sent if _ID.fullmatch(sent) else f"req-{secrets.token_hex(8)}"
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "note": ""}
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers[HEADER] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                message["headers"] = headers.raw
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientLeft:
            status = CLIENT_LEFT
            self._metrics.cancelled.inc()
        except asyncio.CancelledError:
            status = status or 503
            raise
        except Exception as error:
            shown = api_error(error, self._names)
            if shown is not error and shown.status == 500:
                self._report(request_id, error)
            if status:  # the response has begun: close the connection
                raise
            await _send_error(shown, scope, receive, send_with_id)
        finally:
            self._count(scope, status, time.monotonic() - begin)

    def _report(self, request_id: str, error: Exception) -> None:
        if self._debug:
            traceback.print_exception(error)
        self._log(f"{request_id}: {type(error).__name__}: {error}")

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(path, status).inc()
        self._metrics.duration.labels(path).observe(seconds)
        if status != 200 or scope["path"] not in _SILENT:
            state = scope["state"]
            self._log(
                f"{state['request_id']} {scope['method']} {scope['path'][:200]!r} {status}"
                f"{state['note']} {seconds:.3f} s"
            )


async def _send_error(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    response = JSONResponse(error.body, status_code=error.status, headers=error.headers)
    await response(scope, receive, send)
