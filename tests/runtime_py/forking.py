"""Run a part of a test in a forked child process."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

SECONDS = 20


def in_child(body: Callable[[], object]) -> None:
    """Call a function in a forked child, which then ends as a Python program does.

    Fails if the function fails, or if the child does not end in time.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException:  # pytest.fail, too
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    deadline = time.monotonic() + SECONDS
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.005)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
