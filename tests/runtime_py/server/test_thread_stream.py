"""Thread streams: all items in order, errors, and the end of the thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime_py.server.thread_stream import Cancelled, thread_stream


def test_items_arrive_in_order_and_errors_after_them() -> None:
    def items(_: Cancelled) -> Iterator[int]:
        yield from range(5000)
        raise ValueError("at the end")

    async def run(executor: ThreadPoolExecutor) -> list[int]:
        ends: list[str] = []
        read: list[int] = []

        async def read_all() -> None:
            async with thread_stream(items, executor, lambda: ends.append("end")) as batches:
                async for batch in batches:
                    read.extend(batch)

        with pytest.raises(ValueError, match="at the end"):
            await read_all()
        assert ends == ["end"]
        return read

    with ThreadPoolExecutor(1) as executor:
        assert asyncio.run(run(executor)) == list(range(5000))


def test_a_stream_that_is_left_is_cancelled_and_closed() -> None:
    closed = threading.Event()
    called = threading.Event()

    def items(cancelled: Cancelled) -> Iterator[int]:
        cancelled.call(called.set)
        try:
            yield 1
            while not cancelled:
                called.wait(0.01)
                yield 2
        finally:
            closed.set()

    async def run(executor: ThreadPoolExecutor) -> None:
        async with thread_stream(items, executor, lambda: None) as batches:
            await anext(batches)
        assert called.is_set()
        assert closed.is_set()

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(run(executor))


def test_a_generator_that_cannot_be_made() -> None:
    def fail(_: Cancelled) -> Iterator[int]:
        raise KeyError("made")

    async def run(executor: ThreadPoolExecutor) -> None:
        async with thread_stream(fail, executor, lambda: None) as batches:
            with pytest.raises(KeyError, match="made"):
                await anext(batches)

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(run(executor))
