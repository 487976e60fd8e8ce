"""The lock of an engine: turns in order of arrival, none after `close` or in a forked child."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime_py.engines import step_lock
from runtime_py.engines.step_lock import CLOSED, FORKED, EngineClosed, StepLock
from tests.runtime_py.forking import in_child


class Queue:
    """Threads that wait for a turn, in an order that the test chooses."""

    def __init__(self, lock: StepLock) -> None:
        self.lock = lock
        self.order: list[str] = []
        self.threads: list[threading.Thread] = []

    def join(self, name: str) -> None:
        """Start a thread, and wait until it is in the queue."""
        before = self.lock._last

        def body() -> None:
            try:
                with self.lock.turn():
                    self.order.append(name)
            except EngineClosed as error:
                self.order.append(f"{name}: {error}")

        thread = threading.Thread(target=body)
        thread.start()
        self.threads.append(thread)
        while self.lock._last is before:
            time.sleep(0)

    def finish(self) -> list[str]:
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()
        return self.order


def test_waiting_turns_come_in_order_of_arrival() -> None:
    lock = StepLock(object())
    queue = Queue(lock)
    names = [str(number) for number in range(20)]
    with lock.turn():
        for name in names:
            queue.join(name)
    lock.end_slice()
    with lock.turn():
        assert queue.order == names
    assert queue.finish() == names


def test_a_thread_goes_first_in_its_slice_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_lock, "SLICE", 1e6)
    monkeypatch.setattr(step_lock, "POLL", 1e6)
    lock = StepLock(object())
    queue = Queue(lock)
    with lock.turn():
        queue.join("other")
    for _ in range(3):
        with lock.turn():
            assert not queue.order
    lock.end_slice()
    assert queue.finish() == ["other"]


def test_an_engine_that_its_thread_leaves_unused_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_lock, "SLICE", 1e6)
    lock = StepLock(object())
    with lock.turn():
        pass
    with ThreadPoolExecutor(1) as other:
        other.submit(lambda: lock.turn().__enter__()).result(10)


def test_an_exception_ends_a_turn() -> None:
    lock = StepLock(object())
    with pytest.raises(KeyError), lock.turn():
        raise KeyError
    with lock.turn():
        pass


@pytest.fixture
def _sigint_raises() -> Iterator[None]:
    """Other tests may leave SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_sigint_raises")
def test_who_is_interrupted_while_waiting_passes_the_turn_on() -> None:
    """Two of four leave the queue in the middle of it."""
    lock = StepLock(object())
    queue = Queue(lock)
    main = threading.main_thread().ident
    with lock.turn():
        queue.join("first")
        for name in ("second", "third"):
            turn = lock.turn()
            timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
            assert main == threading.get_ident()
            timer.start()
            with pytest.raises(KeyboardInterrupt), turn:
                pytest.fail("it had its turn")
            queue.join(name)
    assert queue.finish() == ["first", "second", "third"]


def test_closing_waits_and_refuses_those_behind() -> None:
    lock = StepLock(object())
    queue = Queue(lock)
    closer = threading.Thread(target=lambda: lock.close(lambda: queue.order.append("closed")))
    with lock.turn():
        queue.join("before")
        before = lock._last
        closer.start()
        while lock._last is before:
            time.sleep(0)
        queue.join("behind")
    closer.join()
    assert queue.finish() == ["before", "closed", f"behind: {CLOSED}"]
    lock.close(lambda: pytest.fail("it was closed twice"))
    with pytest.raises(EngineClosed, match="closed while it was in use"), lock.turn():
        pass


def test_a_child_is_refused_even_if_a_thread_of_the_parent_had_its_turn() -> None:
    lock = StepLock(object())
    release = threading.Event()
    holding = threading.Event()

    def hold() -> None:
        with lock.turn():
            holding.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(10)

    def child() -> None:
        with pytest.raises(EngineClosed) as refused, lock.turn():
            pass
        assert str(refused.value) == FORKED
        lock.close(lambda: pytest.fail("the parent's engine was freed"))

    in_child(child)
    release.set()
    thread.join()
    with lock.turn():
        pass
