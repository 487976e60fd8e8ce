"""A runner in a process of its own, which works only when it is asked something."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

from bench.peers.processes import PeerFailed, end, reason, started

PATIENCE = 1200.0
"""Seconds that an answer may take."""


class Child:
    """Between answers it is stopped, so that threads which wait actively take nothing from others."""

    def __init__(self, module: str, python: str, log: Path, cache: Path) -> None:
        """module: the runner. cache: where this project may keep its packed weights."""
        self._log = log
        self._process = started(
            [python, "-m", module],
            log,
            {"O2O_CACHE": str(cache)},
            pipe=subprocess.PIPE,
        )

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """The answer (see `runners.serving`). Raises PeerFailed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            self.close()
            raise PeerFailed(f"no answer to {do!r} in {PATIENCE:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailed(reason(self._process.wait(), self._log))
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(f"{answer['error']} ({self._log})")
        return answer

    def close(self) -> None:
        end(self._process)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
