"""A runner in its own process, which works only while it answers a request."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

from bench.peers.processes import PeerFailed, failure_reason, kill, spawn

TIMEOUT = 1200.0
"""Seconds that an answer may take."""


class Worker:
    """A runner's process. It is stopped between answers, so that busy-waiting threads use no CPU time."""

    def __init__(self, module: str, python: str, log: Path, cache: Path) -> None:
        """Start a runner.

        Args:
            module: The runner's module.
            python: The interpreter of the peer's environment.
            log: The file for its stderr.
            cache: The disk cache for this project's packed weights.
        """
        self._log = log
        self._process = spawn(
            [python, "-m", module],
            log,
            {"O2O_CACHE": str(cache)},
            pipe=subprocess.PIPE,
        )

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; see `runners.serving`.

        Args:
            do: The action.
            fields: The other fields of the request.

        Returns:
            The answer.

        Raises:
            PeerFailed: The process fails, ends or does not answer in time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], TIMEOUT)[0]:
            self.close()
            raise PeerFailed(f"no answer to {do!r} in {TIMEOUT:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailed(failure_reason(self._process.wait(), self._log))
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(f"{answer['error']} ({self._log})")
        return answer

    def close(self) -> None:
        """Kill the process."""
        kill(self._process)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
