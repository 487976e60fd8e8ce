"""Children that end with their parent's work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from functools import partial

import pytest

from export.processes import run_parallel, signals_blocked, signals_interrupt
from o2o.errors import O2oError, UsageError


def refuse() -> None:
    raise UsageError("refused")


def test_all_tasks_run() -> None:
    done: list[int] = []
    run_parallel([partial(abs, number) for number in range(3)], 2, done.append)
    assert done == [1, 1, 1]


def test_an_error_ends_the_other_children() -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match="refused"):
        run_parallel([partial(time.sleep, 60), refuse], 2, lambda count: None)
    assert time.monotonic() - started < 50
    assert not multiprocessing.active_children()


def test_a_child_that_is_killed() -> None:
    with pytest.raises(O2oError, match="killed during the export, most likely because memory ran out"):
        run_parallel([partial(os._exit, 9)], 1, lambda count: None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_signals_raise(number: signal.Signals, exception: type[BaseException]) -> None:
    before = signal.getsignal(number)
    with pytest.raises(exception), signals_interrupt(exception):  # noqa: PT012
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert signal.getsignal(number) is before


def test_signals_wait() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), signals_interrupt(), signals_blocked():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)  # to this thread: another one has other blocked signals
        done = True
    assert done
