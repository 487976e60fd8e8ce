"""Admission: slots, the queue in order of arrival, and refusals."""

from __future__ import annotations

import asyncio

import pytest

from runtime_py.server.admission import LONGEST_RETRY, Admission
from runtime_py.server.errors import ApiError


def test_requests_wait_in_order_and_the_queue_is_bounded() -> None:
    async def run() -> None:
        admission = Admission(slots=1, queue=2, timeout=5)
        order: list[int] = []
        release = await admission.acquire()

        async def enter(number: int) -> None:
            free = await admission.acquire()
            order.append(number)
            free()
            free()

        tasks = [asyncio.create_task(enter(number)) for number in range(2)]
        await asyncio.sleep(0)
        assert (admission.running, admission.waiting) == (1, 2)
        with pytest.raises(ApiError) as refused:
            await admission.acquire()
        assert refused.value.status == 429
        assert 1 <= int(refused.value.headers["Retry-After"]) <= LONGEST_RETRY
        release()
        release()
        await asyncio.gather(*tasks)
        assert order == [0, 1]
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(run())


def test_a_request_does_not_wait_forever() -> None:
    async def run() -> None:
        admission = Admission(slots=1, queue=2, timeout=0.01)
        release = await admission.acquire()
        with pytest.raises(ApiError) as refused:
            await admission.acquire()
        assert refused.value.status == 503
        release()
        (await admission.acquire())()

    asyncio.run(run())
