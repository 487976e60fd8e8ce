"""The application: its endpoints, and the layers around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from runtime_py.package import Package
from runtime_py.server.access import Access
from runtime_py.server.body import LimitedBody
from runtime_py.server.chat import chat_completions
from runtime_py.server.completions import completions
from runtime_py.server.errors import ApiError
from runtime_py.server.metrics import CONTENT_TYPE, Metrics
from runtime_py.server.models import ModelRegistry, ServedModel
from runtime_py.server.request_log import RequestLog
from runtime_py.server.responses import Json
from runtime_py.server.service import Service, service_of
from runtime_py.server.settings import ServerSettings

PAGE = Path(__file__).with_name("page")
"""The folder of the chat page."""


class App:
    """The ASGI application."""

    def __init__(
        self,
        packages: Mapping[str, Package],
        settings: ServerSettings | None = None,
        log: Callable[[str], None] = lambda line: None,
        debug: bool = False,
    ) -> None:
        """Create the application.

        Args:
            packages: The packages by name. The first is the default.
            settings: The settings; None for the defaults.
            log: Takes a line for each request.
            debug: Print tracebacks of internal errors.
        """
        settings = settings or ServerSettings()
        metrics = Metrics()
        self.service = Service(settings, ModelRegistry(packages, settings, metrics), metrics)
        router = Router(routes(), redirect_slashes=False, default=_not_found)
        app: ASGIApp = LimitedBody(router, settings)
        app = Access(app, settings)
        self._app: ASGIApp = RequestLog(app, metrics, log, debug)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection.

        Args:
            scope: See ASGI.
            receive: See ASGI.
            send: See ASGI.
        """
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        scope["app"] = self
        await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.service.models.close()
        await send({"type": "lifespan.shutdown.complete"})


def routes() -> list[BaseRoute]:
    """List the endpoints.

    Returns:
        The routes.
    """
    listed: list[BaseRoute] = [
        Route("/health", health),
        Route("/v1/health", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/models", models),
        Route("/v1/models/{model:path}", model),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
    ]
    if PAGE.is_dir():
        listed += [Route("/", page), Mount("/page", StaticFiles(directory=PAGE))]
    return listed


async def health(request: Request) -> Response:
    """Answer that the server runs."""
    return Json({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Write the metrics."""
    return PlainTextResponse(service_of(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def models(request: Request) -> Response:
    """List the models."""
    registry = service_of(request).models
    return Json({"object": "list", "data": [_described(each, registry) for each in registry.models.values()]})


async def model(request: Request) -> Response:
    """Describe a model."""
    registry = service_of(request).models
    return Json(_described(registry.find(request.path_params["model"]), registry))


async def page(request: Request) -> Response:
    """Send the chat page."""
    response = await StaticFiles(directory=PAGE).get_response("index.html", request.scope)
    response.headers["Cache-Control"] = "no-cache"
    return response


def _described(model: ServedModel, registry: ModelRegistry) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "o2o",
        "meta": {"loaded": model.name in registry.loaded, "chat": model.has_template},
    }


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise ApiError(404, f"there is no endpoint {scope['path'][:100]!r}: GET /openapi.json lists them")
