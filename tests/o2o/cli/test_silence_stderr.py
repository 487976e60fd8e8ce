"""Silence, also where there is nothing to be silenced."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from o2o.cli.silence_stderr import captured_stderr, silenced_stderr

PROGRAM = """
import os, sys
from o2o.cli.silence_stderr import silence_stderr_forever, silenced_stderr
assert sys.stderr is None
with silenced_stderr():
    print("inside")
silence_stderr_forever()
print("after")
"""


def test_what_is_written_inside_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced_stderr():
        os.write(2, b"inside\n")
    with silenced_stderr(False):
        os.write(2, b"not quiet\n")
    assert capfd.readouterr().err == "not quiet\n"


def test_a_closed_stderr() -> None:
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, PROGRAM]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "inside\nafter\n"


def test_what_is_written_inside_is_captured(capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with captured_stderr(lines):
        os.write(2, b"one\ntwo\n")
    os.write(2, b"after\n")
    assert lines == ["one", "two"]
    assert capfd.readouterr().err == "after\n"


def test_blocks_of_two_threads_that_overlap(capfd: pytest.CaptureFixture[str]) -> None:
    """The first to enter is the first to leave."""
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with silenced_stderr():
            entered.set()
            left.wait(10)
            os.write(2, b"inside\n")

    thread = threading.Thread(target=other)
    with silenced_stderr():
        thread.start()
        entered.wait(10)
    left.set()
    thread.join()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_many_threads(capfd: pytest.CaptureFixture[str]) -> None:
    def write(number: int) -> None:
        lines: list[str] = []
        with captured_stderr(lines) if number % 2 else silenced_stderr():
            os.write(2, b"%d\n" % number)
        assert lines == ([str(number)] if number % 2 else [])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(200)))
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_a_forked_child_ends_the_blocks_of_other_threads(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced_stderr():
        pid = os.fork()
        if pid == 0:
            os.write(2, b"child\n")
            with silenced_stderr():
                os.write(2, b"inside\n")
            os._exit(0)
        os.waitpid(pid, 0)
        os.write(2, b"parent\n")
    assert capfd.readouterr().err == "child\n"
