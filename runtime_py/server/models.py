"""The models of the server: packages by name, loaded when they are asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from runtime_py.generation.generation_config import GenerationConfig
from runtime_py.package import Package
from runtime_py.server import tool_formats
from runtime_py.server.admission import Admission
from runtime_py.server.errors import ApiError
from runtime_py.server.metrics import Metrics
from runtime_py.server.output_parser import REASONING_MARKS
from runtime_py.server.settings import ServerSettings
from runtime_py.server.thread_stream import Cancelled, thread_stream
from runtime_py.text.chat_template import DEFAULT, TOOL_USE, ChatTemplate, Message, template_sources
from runtime_py.text.token_bytes import TokenBytes

T = TypeVar("T")


class ServedModel:
    """A package that the server offers."""

    def __init__(self, name: str, package: Package, settings: ServerSettings) -> None:
        """Offer a package.

        Args:
            name: Its name in requests.
            package: The package.
            settings: The settings of the server.
        """
        self.name = name
        self.package = package
        self.created = int(time.time())
        self.admission = Admission(settings.parallel, settings.queue, settings.timeout)
        self.executor = ThreadPoolExecutor(settings.parallel, f"o2o-{name}")
        self.last_use = 0.0
        self._settings = settings

    @cached_property
    def config(self) -> GenerationConfig:
        """The settings of the package, under those of the server."""
        config, settings = self.package.generation_config, self._settings
        if settings.sampling is not None:
            config = replace(config, sampling=settings.sampling.over(config.sampling))
        if settings.max_new_tokens is not None:
            limit = min(settings.max_new_tokens, config.max_new_tokens or settings.max_new_tokens)
            config = replace(config, max_new_tokens=limit)
        return config

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """The bytes of each token."""
        return TokenBytes(self.package.tokenizer)

    @cached_property
    def special_marks(self) -> Mapping[str, int]:
        """The ids of the special tokens that mark tool calls or reasoning, by text. No text shows them."""
        tokenizer = self.package.tokenizer
        ids = {mark: tokenizer.token_id(mark) for mark in (*tool_formats.MARKS, *REASONING_MARKS)}
        return {mark: id for mark, id in ids.items() if id is not None and tokenizer.is_hidden(id)}

    def template_source(self, with_tools: bool) -> str:
        """Return the source of a chat template.

        Args:
            with_tools: Whether there are tools.

        Returns:
            The template that `render` uses; "" if there is none.
        """
        sources = self.template_sources
        return sources.get(TOOL_USE, sources.get(DEFAULT, "")) if with_tools else sources.get(DEFAULT, "")

    @cached_property
    def template_sources(self) -> Mapping[str, str]:
        """The chat templates of the package by name."""
        return template_sources(self.package.directory)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> str:
        """Render a conversation by the chat template.

        Args:
            messages: The messages.
            tools: JSON schemas of the tools.
            template_args: Other variables of the template.

        Returns:
            The prompt.

        Raises:
            ApiError: The package has no chat template.
            UsageError: The template refuses the messages.
        """
        if not self.has_template:
            raise ApiError(
                400,
                f"the model {self.name} has no chat template: it cannot chat: use /v1/completions",
                param="model",
            )
        template = ChatTemplate(
            self.package.directory,
            self.package.tokenizer.special_tokens,
            tools=tools,
            template_args=template_args,
            sources=self.template_sources,
        )
        return template.render(messages)

    @property
    def has_template(self) -> bool:
        """Whether the package can chat."""
        return bool(self.template_sources)


class ModelRegistry:
    """The models by name, and which of them are in memory."""

    def __init__(self, packages: Mapping[str, Package], settings: ServerSettings, metrics: Metrics) -> None:
        """Offer packages.

        Args:
            packages: The packages by name. The first is the default.
            settings: The settings of the server.
            metrics: Shows the numbers of requests.
        """
        self.models = {name: ServedModel(name, package, settings) for name, package in packages.items()}
        self.loaded: dict[str, ServedModel] = {}
        self._max_loaded = settings.max_loaded
        self._any_model = settings.any_model
        self._timeout = settings.timeout
        self._changed = asyncio.Condition()
        for name, model in self.models.items():
            metrics.watch(name, model.admission)

    def mark_loaded(self, name: str) -> None:
        """Note that a model was loaded before the server began.

        Args:
            name: Its name.
        """
        self.loaded[name] = self.models[name]

    def find(self, name: str | None) -> ServedModel:
        """Find a model.

        Args:
            name: Its name; None, or an unknown one with `any_model`, for the first one.

        Returns:
            The model.

        Raises:
            ApiError: There is none of that name.
        """
        if name is None or (self._any_model and name not in self.models):
            return next(iter(self.models.values()))
        if name not in self.models:
            names = ", ".join(self.models)
            raise ApiError(
                404,
                f"there is no model {name[:100]!r}: this server has {names}",
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    @asynccontextmanager
    async def run(
        self, model: ServedModel, make: Callable[[Cancelled], Iterator[T]]
    ) -> AsyncIterator[AsyncIterator[list[T]]]:
        """Run a generator with a slot of a model, in a thread.

        Args:
            model: The model. It stays in memory until the generator ends.
            make: Makes the generator.

        Yields:
            The batches of its items.

        Raises:
            ApiError: See `Admission.acquire`; or all models in memory are in use.
        """
        release = await model.admission.acquire()

        def end() -> None:
            release()
            waking = asyncio.ensure_future(self._wake())
            self._waking = waking  # the loop itself holds tasks weakly

        try:
            await self._make_room(model)
        except BaseException:
            end()
            raise
        async with thread_stream(make, model.executor, end) as batches:
            yield batches

    async def capacity(self, model: ServedModel) -> int:
        """Return the number of tokens of the context of a model. Loads it if it was never loaded.

        Args:
            model: The model.

        Returns:
            S.
        """
        if model.package.loaded is None:
            async with self.run(model, lambda _: _loading(model.package)) as batches:
                _ = [batch async for batch in batches]
        assert model.package.loaded is not None
        return model.package.loaded.engine.capacity

    async def close(self) -> None:
        """Unload all models. Running generators end with an error."""
        for model in self.models.values():
            await asyncio.to_thread(model.package.close)
            model.executor.shutdown(wait=False)

    async def _make_room(self, model: ServedModel) -> None:
        """Unload the model that was not used for the longest time, if there are too many."""
        model.last_use = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout), self._changed:
                while model.name not in self.loaded and len(self.loaded) >= self._max_loaded:
                    idle = [other for other in self.loaded.values() if not other.admission.running]
                    if not idle:
                        await self._changed.wait()
                        continue
                    oldest = min(idle, key=lambda other: other.last_use)
                    del self.loaded[oldest.name]
                    await asyncio.to_thread(oldest.package.close)
                self.loaded[model.name] = model
        except TimeoutError:
            raise ApiError(
                503,
                "all models in memory are in use: try again, or start the server with --max-loaded",
                headers={"Retry-After": "10"},
            ) from None

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _loading(package: Package) -> Iterator[None]:
    package.session().close()
    yield
