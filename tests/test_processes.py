"""Tests that send signals work where the parent ignores them; every test has a time limit."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.processes import SIGNALS, spawn

PROGRAM = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_end_a_child_of_a_process_that_ignores_them(number: signal.Signals) -> None:
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        with spawn(
            [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            assert process.wait(timeout=20) == -number
    finally:
        signal.signal(number, previous)


def test_every_test_has_a_time_limit(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.has_plugin("timeout")
    assert 0 < float(pytestconfig.getini("timeout")) <= 600
    assert pytestconfig.getini("faulthandler_exit_on_timeout")
