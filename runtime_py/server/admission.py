"""Admission: a bounded number of running requests, and a bounded queue of waiting ones."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from runtime_py.server.errors import ApiError

LONGEST_RETRY = 60
"""Seconds of the longest `Retry-After`."""
_WEIGHT = 0.2
"""Weight of the last request in the moving average of durations."""


class Admission:
    """The slots of a model. Requests wait in order of arrival."""

    def __init__(self, slots: int, queue: int, timeout: float) -> None:
        """Create free slots.

        Args:
            slots: The largest number of running requests.
            queue: The largest number of waiting requests.
            timeout: Seconds that a request may wait.
        """
        self.slots = slots
        self.running = self.waiting = 0
        self._queue = queue
        self._timeout = timeout
        self._free = asyncio.Semaphore(slots)
        self._duration = 1.0  # moving average of running requests, in seconds

    @property
    def retry_after(self) -> int:
        """Seconds after which a slot may be free, at least 1."""
        rounds = (self.waiting + 1) / self.slots
        return min(LONGEST_RETRY, max(1, math.ceil(self._duration * rounds)))

    async def acquire(self) -> Callable[[], None]:
        """Wait for a slot.

        Returns:
            The function that gives it back. Calling it again does nothing.

        Raises:
            ApiError: The queue is full, or the request waited too long.
        """
        if self._free.locked() and self.waiting >= self._queue:
            raise self._refusal(429, f"the queue is full: {self.waiting} requests are waiting")
        self.waiting += 1
        try:
            async with asyncio.timeout(self._timeout):
                await self._free.acquire()
        except TimeoutError:
            raise self._refusal(503, f"no slot was free for {self._timeout:g} seconds") from None
        finally:
            self.waiting -= 1
        self.running += 1
        begin: float | None = time.monotonic()

        def release() -> None:
            nonlocal begin
            if begin is not None:
                self._duration += _WEIGHT * (time.monotonic() - begin - self._duration)
                begin = None
                self.running -= 1
                self._free.release()

        return release

    def _refusal(self, status: int, reason: str) -> ApiError:
        seconds = self.retry_after
        return ApiError(status, f"{reason}: try again in {seconds} s", headers={"Retry-After": str(seconds)})
