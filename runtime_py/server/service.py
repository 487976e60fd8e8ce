"""The service: what the endpoints share, and how a completion becomes a response."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from runtime_py.server.metrics import Metrics
from runtime_py.server.models import ModelRegistry, ServedModel
from runtime_py.server.responses import DONE, Completion, EventStream, Json, event, ignored_header
from runtime_py.server.schemas import OpenAIFields
from runtime_py.server.settings import ServerSettings
from runtime_py.server.texts import Ended, Piece
from runtime_py.server.thread_stream import Cancelled

T = TypeVar("T")
Choices = list[dict[str, Any]]


class Service:
    """The state of a server."""

    def __init__(self, settings: ServerSettings, models: ModelRegistry, metrics: Metrics) -> None:
        """Create the state.

        Args:
            settings: The settings.
            models: The models.
            metrics: The metrics.
        """
        self.settings = settings
        self.models = models
        self.metrics = metrics

    def limited(self, max_tokens: int | None) -> int | None:
        """Return the largest number of new tokens of a request.

        Args:
            max_tokens: The number that it asks for; None for none.

        Returns:
            The number, at most that of the settings; None for the limit of the package.
        """
        limit = self.settings.max_new_tokens
        return max_tokens if limit is None or max_tokens is None else min(max_tokens, limit)

    @asynccontextmanager
    async def run(
        self, model: ServedModel, make: Callable[[Cancelled], Iterator[T]]
    ) -> AsyncIterator[AsyncIterator[list[T]]]:
        """Run a generator with a slot of a model; see `ModelRegistry.run`. Count its texts.

        Args:
            model: The model.
            make: Makes the generator.

        Yields:
            The batches of its items.
        """
        async with self.models.run(model, make) as batches:
            yield batches

    async def respond(
        self,
        request: Request,
        model: ServedModel,
        make: Callable[[Cancelled], Iterator[Any]],
        push: Callable[[Any], Choices],
        completion: Completion,
        fields: OpenAIFields,
        join: Callable[[Iterable[dict[str, Any]]], Choices],
    ) -> Response:
        """Generate texts, and write them as a whole or as a stream.

        Args:
            request: The request.
            model: The model.
            make: Makes the generator of events.
            push: Takes an event, and returns the choices of a chunk.
            completion: The other parts of the response.
            fields: The fields of the request.
            join: Returns the choices of the whole response.

        Returns:
            The response.

        Raises:
            ApiError: The request is wrong, or the server is busy.
        """
        headers = ignored_header(fields)
        if fields.stream:
            usage = bool(fields.stream_options and fields.stream_options.include_usage)
            return EventStream(self._events(request, model, make, push, completion, usage), headers)
        parts: Choices = []
        async with self.run(model, make) as batches:
            async for batch in batches:
                for each in batch:
                    parts += push(each)
        self.finish(request, model, completion)
        body = {**completion.head, "choices": join(parts), "usage": completion.usage}
        return Json({**body, "timings": completion.timings}, headers=headers)

    @asynccontextmanager
    async def _events(
        self,
        request: Request,
        model: ServedModel,
        make: Callable[[Cancelled], Iterator[Any]],
        push: Callable[[Any], Choices],
        completion: Completion,
        usage: bool,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        head = completion.chunk_head
        extra = {"usage": None} if usage else {}

        async def events() -> AsyncIterator[bytes]:
            begun = False
            async for batch in batches:
                # The first event waits for the first token: an error before it has its own status.
                begun = begun or any(isinstance(each, Piece | Ended) for each in batch)
                waiting.extend(choice for each in batch for choice in push(each))
                if begun and waiting:
                    yield b"".join(event({**head, "choices": [choice], **extra}) for choice in waiting)
                    waiting.clear()
            last: dict[str, Any] = {**head, "choices": [], "timings": completion.timings}
            yield (event({**last, "usage": completion.usage}) if usage else b"") + DONE

        waiting: Choices = []
        async with self.run(model, make) as batches:
            try:
                yield events()
            finally:
                self.finish(request, model, completion)

    def finish(self, request: Request, model: ServedModel, completion: Completion) -> None:
        """Count the tokens of a response, and add them to its line in the log.

        Args:
            request: The request.
            model: The model.
            completion: The response.
        """
        usage, name = completion.usage, model.name
        self.metrics.prompt_tokens.labels(name).inc(usage["prompt_tokens"])
        self.metrics.cached_tokens.labels(name).inc(usage["prompt_tokens_details"]["cached_tokens"])
        self.metrics.new_tokens.labels(name).inc(completion.num_new)
        if completion.ended:
            self.metrics.first_token.labels(name).observe(completion.ended[0].prompt_seconds)
        request.scope["state"]["note"] = (
            f" {usage['prompt_tokens']} prompt tokens, {completion.num_new} new tokens,"
        )


def service_of(request: Request) -> Service:
    """Return the service of a request.

    Args:
        request: The request.

    Returns:
        The state of its server.
    """
    service: Service = request.scope["app"].service
    return service
