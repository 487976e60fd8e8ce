"""Bodies of requests: read within limits, before anything is parsed. Then the client is watched."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime_py.server.errors import ApiError
from runtime_py.server.settings import ServerSettings


class ClientLeft(Exception):
    """The client closed the connection before the response was complete."""


class LimitedBody:
    """Reads the body of each request. Cancels the application when the client leaves."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        """Wrap an application.

        Args:
            app: The application.
            settings: The settings of the server.
        """
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request.

        Args:
            scope: See ASGI.
            receive: See ASGI.
            send: See ASGI.

        Raises:
            ApiError: The body is too large or too slow.
            ClientLeft: The client left.
        """
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = await self._read(scope, receive)
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        left = asyncio.ensure_future(_leaving(receive))

        async def replay() -> Message:
            if messages:
                return messages.pop()
            await asyncio.shield(left)
            return {"type": "http.disconnect"}

        task = asyncio.ensure_future(self._app(scope, replay, send))
        try:
            await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            if task.cancelled():
                raise ClientLeft
            task.result()
        except asyncio.CancelledError:  # the server ends
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            left.cancel()

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limit = self._settings.max_body
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and len(declared) < 20 and int(declared) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    size += len(message.get("body", b""))
                    if size > limit:
                        raise _too_large(limit)
                    parts.append(message.get("body", b""))
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                408,
                f"the body did not arrive in {self._settings.body_timeout:g} seconds",
                headers={"Connection": "close"},
            ) from None


async def _leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body has more than {limit} bytes: send less, or start the server with a larger --max-body",
        headers={"Connection": "close"},
    )
