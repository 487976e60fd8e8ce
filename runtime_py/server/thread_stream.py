"""Thread streams: a generator runs in a thread, and the event loop reads its items."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Cancelled:
    """Whether a stream was cancelled. The generator asks it between its steps."""

    def __init__(self) -> None:
        """Begin without cancellation."""
        self._event = threading.Event()
        self._callback: Callable[[], object] | None = None

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """Cancel the stream."""
        self._event.set()
        if self._callback is not None:
            self._callback()

    def call(self, callback: Callable[[], object]) -> None:
        """Set the function that `set` calls, in its thread.

        Args:
            callback: Interrupts a step.
        """
        self._callback = callback
        if self:
            callback()


class ThreadStream(Generic[T]):
    """Runs a generator in a thread. It holds all items that were not read."""

    def __init__(self, make: Callable[[Cancelled], Iterator[T]], executor: Executor) -> None:
        """Start the generator.

        Args:
            make: Makes the generator, in the thread.
            executor: Gives the thread.
        """
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._items: deque[T] = deque()
        self._ready = asyncio.Event()
        self._waking = False  # a call of `_ready.set` is on its way
        self._ended = False
        self._error: BaseException | None = None
        self.cancelled = Cancelled()
        self.ended = self._loop.run_in_executor(executor, self._run)

    async def batches(self) -> AsyncIterator[list[T]]:
        """Read the items.

        Yields:
            All items that there are, at least one.

        Raises:
            BaseException: What the generator raised, after its last item.
        """
        while True:
            await self._ready.wait()
            self._ready.clear()
            self._waking = False
            ended = self._ended  # read before the items: the thread appends, then sets it
            items = []
            while self._items:
                items.append(self._items.popleft())
            if items:
                yield items
            if ended:
                if self._error is not None:
                    raise self._error
                return

    async def close(self) -> None:
        """Cancel the generator, and wait for the end of its step."""
        self.cancelled.set()
        await asyncio.shield(self.ended)
        await asyncio.sleep(0)  # the callbacks of its end run before the caller goes on

    def _run(self) -> None:
        generator = None
        try:
            generator = self._make(self.cancelled)
            for item in generator:
                self._items.append(item)
                self._wake()
                if self.cancelled:
                    break
        except BaseException as error:
            self._error = error
        finally:
            try:
                if generator is not None and hasattr(generator, "close"):
                    generator.close()
            finally:
                self._ended, self._waking = True, False
                self._wake()

    def _wake(self) -> None:
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._ready.set)


@asynccontextmanager
async def thread_stream(
    make: Callable[[Cancelled], Iterator[T]], executor: Executor, on_end: Callable[[], object]
) -> AsyncIterator[AsyncIterator[list[T]]]:
    """Run a generator in a thread while the block runs.

    Args:
        make: See `ThreadStream`.
        executor: See `ThreadStream`.
        on_end: Called in the event loop when the thread has ended, even if items were not read.

    Yields:
        The batches of its items. At the end of the block the thread has ended.
    """
    try:
        stream = ThreadStream(make, executor)
    except BaseException:
        on_end()
        raise
    stream.ended.add_done_callback(lambda _: on_end())
    try:
        async with aclosing(stream.batches()) as batches:  # type: ignore[type-var]
            yield batches
    finally:
        await stream.close()
