"""Silence, also where there is nothing to be silenced."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from o2o.cli.silence_stderr import silenced_stderr

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
