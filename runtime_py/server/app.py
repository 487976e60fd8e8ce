"""The application: its endpoints, and the layers around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from runtime_py.package import Package
from runtime_py.server.access import PUBLIC, Access
from runtime_py.server.body import LimitedBody
from runtime_py.server.chat import chat_completions
from runtime_py.server.completions import completions
from runtime_py.server.errors import ApiError
from runtime_py.server.llama_cpp import completion, props, slots
from runtime_py.server.metrics import CONTENT_TYPE, Metrics
from runtime_py.server.models import ModelRegistry, ServedModel
from runtime_py.server.openapi import Document, Endpoint
from runtime_py.server.request_log import RequestLog
from runtime_py.server.responses import Json
from runtime_py.server.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    NativeRequest,
    SlotRequest,
    TemplateRequest,
    TokenizeRequest,
)
from runtime_py.server.service import Service, service_of
from runtime_py.server.settings import ServerSettings
from runtime_py.server.slots import change_slot
from runtime_py.server.tokens import apply_template, count_tokens, detokenize, tokenize

PAGE = Path(__file__).with_name("page")
"""The folder of the chat page."""
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Nothing of the page comes from elsewhere, no request leaves for elsewhere, and nothing inline runs."""


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
        router = Router(routes(settings), redirect_slashes=False, default=_not_found)
        app: ASGIApp = LimitedBody(router, settings)
        app = Access(app, settings)
        self.names = {str(package.directory): name for name, package in packages.items()}
        """The names of models by the paths of their folders."""
        self._app: ASGIApp = RequestLog(app, metrics, log, self.names, debug)

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


def routes(settings: ServerSettings) -> list[BaseRoute]:
    """List the routes of all endpoints.

    Args:
        settings: The settings of the server.

    Returns:
        The routes, with those of the chat page, if its folder is there.
    """
    document = Document(ENDPOINTS, bool(settings.api_keys), PUBLIC).content

    async def openapi(request: Request) -> Response:
        return Json(document)

    listed: list[BaseRoute] = [Route("/openapi.json", openapi)]
    listed += [Route(each.path, each.handler, methods=[each.method]) for each in ENDPOINTS]
    if PAGE.is_dir():
        listed += [Route("/", page), Route("/page/{name:path}", page)]
    return listed


async def health(request: Request) -> Response:
    """Answer that the server runs.

    Args:
        request: The request.

    Returns:
        The answer.
    """
    return Json({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Write the metrics.

    Args:
        request: The request.

    Returns:
        Prometheus' text format.
    """
    return PlainTextResponse(service_of(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def models(request: Request) -> Response:
    """List the models.

    Args:
        request: The request.

    Returns:
        The list.
    """
    registry = service_of(request).models
    return Json({"object": "list", "data": [_described(each, registry) for each in registry.models.values()]})


async def model(request: Request) -> Response:
    """Describe a model.

    Args:
        request: The request.

    Returns:
        The description.
    """
    registry = service_of(request).models
    return Json(_described(registry.find(request.path_params["model"]), registry))


async def page(request: Request) -> Response:
    """Send a file of the chat page.

    Args:
        request: The request; without a name, for the page itself.

    Returns:
        The file.
    """
    name = request.path_params.get("name", "index.html")
    response = await StaticFiles(directory=PAGE).get_response(name, request.scope)
    response.headers.update(PAGE_HEADERS)
    return response


def _described(model: ServedModel, registry: ModelRegistry) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "o2o",
        "meta": {"loaded": model.name in registry.loaded, "chat": model.has_template},
    }


ENDPOINTS = (
    Endpoint("GET", "/health", health, "Check that the server runs."),
    Endpoint("GET", "/v1/health", health, "Check that the server runs."),
    Endpoint("GET", "/metrics", metrics, "Metrics for Prometheus.", answer=None),
    Endpoint("GET", "/v1/models", models, "List the models.", answer="Models"),
    Endpoint("GET", "/models", models, "List the models.", answer="Models"),
    Endpoint("GET", "/v1/models/{model:path}", model, "Describe a model.", answer="Model"),
    Endpoint(
        "POST",
        "/v1/chat/completions",
        chat_completions,
        "Answer a conversation.",
        ChatRequest,
        "ChatCompletion",
    ),
    Endpoint(
        "POST",
        "/chat/completions",
        chat_completions,
        "Answer a conversation.",
        ChatRequest,
        "ChatCompletion",
    ),
    Endpoint("POST", "/v1/completions", completions, "Continue texts.", CompletionRequest, "Completion"),
    Endpoint("POST", "/completion", completion, "Continue texts.", NativeRequest, "NativeCompletion"),
    Endpoint("POST", "/completions", completion, "Continue texts.", NativeRequest, "NativeCompletion"),
    Endpoint("POST", "/tokenize", tokenize, "Encode a text.", TokenizeRequest, "Tokens"),
    Endpoint("POST", "/detokenize", detokenize, "Decode token ids.", DetokenizeRequest, "Content"),
    Endpoint("POST", "/apply-template", apply_template, "Render messages.", TemplateRequest, "Prompt"),
    Endpoint(
        "POST",
        "/v1/chat/completions/input_tokens",
        count_tokens,
        "Count the tokens of messages.",
        TemplateRequest,
        "TokenCount",
    ),
    Endpoint(
        "POST",
        "/chat/completions/input_tokens",
        count_tokens,
        "Count the tokens of messages.",
        TemplateRequest,
        "TokenCount",
    ),
    Endpoint("GET", "/props", props, "Defaults of requests.", query=("model",)),
    Endpoint("GET", "/slots", slots, "Texts being generated.", answer="Slots", query=("model",)),
    Endpoint(
        "POST",
        "/slots/{id_slot}",
        change_slot,
        "Save, restore or erase KV caches.",
        SlotRequest,
        "Slot",
        query=("action", "model"),
    ),
)
"""The endpoints, except those of the chat page and of OpenAPI."""


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise ApiError(404, f"there is no endpoint {scope['path'][:100]!r}: GET /openapi.json lists them")
